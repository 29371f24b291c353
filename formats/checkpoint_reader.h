// Reading a checkpoint's folder: any range of any logical tensor, however the ranks that wrote it had cut it.
//
// Delicate: no byte is used that was not checked against its digest. Digests are of whole blocks, so a block of which
// anything is asked for is read whole; a range costs at most a block more at each end of a slice's part, and no block
// is read twice in one call. `verify` reads and checks everything.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/file.h"
#include "core/base/file_stream.h"
#include "formats/manifest.h"

namespace castor::formats {

/// Something in a checkpoint's folder that is not as its manifest says.
struct Damage {
  std::string file;    ///< name in the folder
  std::string tensor;  ///< "name (role)", or empty: the file's head, or the file as a whole
  std::string what;    ///< "bytes [64, 1048640) have another digest", "is missing", ...
};

class Checkpoint {
 public:
  /// A range of a tensor, and who takes its bytes.
  struct Request {
    const LogicalTensor* tensor = nullptr;  ///< of this checkpoint's manifest
    std::int64_t offset = 0;                ///< elements
    std::int64_t count = 0;
    /// Takes the range's bytes from byte `at` on; pieces come in any order, none twice. Bytes may come before their
    /// digest was checked: a wrong one throws from `read` later, and then what the sinks got must not be used.
    std::function<void(std::uint64_t at, std::span<const std::byte> bytes)> sink;
  };

  /// Reads and checks the manifest; looks at no other file. Throws IoError (ENOENT: a torn save, or no checkpoint) and
  /// FormatError as parse_manifest.
  static Checkpoint open(const std::string& folder, FileSystem& files = posix_file_system());

  const std::string& folder() const { return folder_; }
  const Manifest& manifest() const { return manifest_; }
  /// Files that are missing or have another size than the manifest says. Looks at sizes only.
  std::vector<Damage> missing_files() const;

  /// Reads ranges, in the order in which they lie in the files, each file once, and with them the rest of their digest
  /// blocks, which goes to no sink. Throws IoError for a file that cannot be read or ends early, FormatError{file,
  /// offset} naming the tensor for a digest that does not match, ShapeError for a range that the tensor does not have.
  void read(std::span<const Request> requests, const StreamOptions& stream = {}) const;
  /// Fills `out` with count elements from `offset`.
  void read(const LogicalTensor& tensor, std::int64_t offset, std::span<std::byte> out) const;
  /// The whole of a file that holds no tensors ("state.json"), found by stem and extension whatever its suffix. Throws
  /// FormatError if there is none or its digest does not match, IoError.
  std::string read_text(std::string_view stem, std::string_view extension) const;
  /// True if there is such a file.
  bool has_text(std::string_view stem, std::string_view extension) const;

  /// Checks every byte against its digest and returns what is wrong, in the order of the manifest's files; empty: all
  /// is as it was written.
  ///   progress  told the bytes checked so far, now and then
  std::vector<Damage> verify(const std::function<void(std::uint64_t bytes)>& progress = {}) const;
  /// Bytes of all files, the manifest included.
  std::uint64_t total_bytes() const;
  /// Bytes read from this checkpoint's files so far, the manifest and what only digests needed included.
  std::uint64_t bytes_read() const { return bytes_read_; }

 private:
  Checkpoint(std::string folder, Manifest manifest, FileSystem& files)
      : folder_(std::move(folder)),
        manifest_(std::move(manifest)),
        files_(&files),
        bytes_read_(manifest_.manifest_bytes) {}

  std::string folder_;
  Manifest manifest_;
  FileSystem* files_;
  mutable std::uint64_t bytes_read_;
};

}  // namespace castor::formats
