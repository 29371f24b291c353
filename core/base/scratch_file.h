// ScratchFile: room on a disk for bytes that no longer fit into memory, read and written in the background.
//
// The file is created exclusively and its name is removed at once, so whatever ends the process, SIGKILL included, the
// system frees the space and nothing stays behind. Room for all of it is set aside before the first write. Transfers go
// past the page cache where the file system can: cached they would fill the very memory they are to save. Delicate: a
// read and a write run on two threads, each in the order it was asked for; whoever reads what is still being written
// says after which transfer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <future>
#include <memory>
#include <span>
#include <string>

#include "core/base/file_stream.h"

namespace castor {

class ScratchFile {
 public:
  /// A transfer in the background; `get` waits and throws its IoError. Default-constructed: nothing to wait for.
  using Transfer = std::shared_future<void>;

  /// A file of `bytes` zero bytes in `directory`, which is made if it is missing. Throws IoError, also when the disk
  /// has no room for all of them.
  ScratchFile(const std::string& directory, std::uint64_t bytes, FileSystem& files = posix_file_system());
  /// Waits for the transfers that have begun and drops the others.
  ~ScratchFile();
  ScratchFile(const ScratchFile&) = delete;
  ScratchFile& operator=(const ScratchFile&) = delete;

  /// The name it had.
  const std::string& path() const;
  std::uint64_t bytes() const { return bytes_; }
  /// Transfers bypass the page cache.
  bool is_direct() const { return is_direct_; }

  /// Fills `out` from `offset`, after `after`. Addresses, offsets and lengths are multiples of kDirectAlignment; memory
  /// must stay until the transfer is done.
  Transfer read(std::span<std::byte> out, std::uint64_t offset, Transfer after = {});
  Transfer write(std::span<const std::byte> data, std::uint64_t offset, Transfer after = {});

 private:
  class Lane;

  std::unique_ptr<File> file_;
  std::uint64_t bytes_;
  bool is_direct_ = false;
  std::unique_ptr<Lane> reads_;
  std::unique_ptr<Lane> writes_;
};

}  // namespace castor
