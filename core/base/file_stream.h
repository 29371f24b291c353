// Streams: writing one large file, or reading many ranges of one, at the disk's own speed with bounded memory.
//
// Both go past the system's page cache where the file system can (File::set_direct) and overlap the disk with the
// caller through a small ring of aligned buffers; the checkpoint's data files stand on them. Delicate: a StreamWriter
// owns one thread, which alone writes the file, in order, so that the operations on a file are the same in every run;
// its failure surfaces at the caller's next call. What the file holds is only certain after finish() returned.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/base/file.h"

namespace castor {

/// What transfers past the page cache need of offset, length and address, in bytes. A file system that wants more gets
/// ordinary transfers instead.
inline constexpr std::size_t kDirectAlignment = 4096;

/// Memory that direct transfers can use: aligned to kDirectAlignment, zeros at first. Move-only. From 2 MiB on it lies
/// in huge pages where the system grants them: a direct transfer then is a few long pieces instead of one a page.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  /// At least `bytes` bytes, rounded up to a multiple of kDirectAlignment. Throws std::bad_alloc.
  explicit AlignedBuffer(std::size_t bytes);

  /// All of it; empty if default-constructed or moved from.
  std::span<std::byte> bytes() const { return {start_.get(), start_ == nullptr ? 0 : start_.get_deleter().bytes}; }

 private:
  struct Unmap {
    std::size_t bytes;
    void operator()(std::byte* start) const;
  };
  std::unique_ptr<std::byte[], Unmap> start_;
};

/// How a stream buffers. Memory held: buffers * buffer_bytes.
struct StreamOptions {
  std::size_t buffer_bytes = std::size_t{4} << 20;  ///< of one buffer; rounded up to a multiple of kDirectAlignment
  std::size_t buffers = 4;                          ///< in the ring, at least 2
  bool direct = true;               ///< past the page cache where the file system can; false: always through it
  std::size_t reads_in_flight = 2;  ///< StreamReader: reads at one time, at most buffers - 1
};

/// Sequential writing of one new file. Not thread-safe: one caller at a time. After any exception only destruction is
/// left. Destroyed before finish(), it stops, drops what is buffered and closes without syncing: the file is not whole.
class StreamWriter {
 public:
  /// Creates `path` (emptied if there) or, with OpenMode::create_new, demands that it is new.
  /// Throws IoError; ConfigError never; InternalError for another mode.
  explicit StreamWriter(const std::string& path, const StreamOptions& options = {},
                        FileSystem& files = posix_file_system(), OpenMode mode = OpenMode::create);
  StreamWriter(StreamWriter&&) noexcept;
  StreamWriter& operator=(StreamWriter&&) noexcept;
  ~StreamWriter();

  const std::string& path() const;
  /// As File::expect_bytes; call it before the first byte.
  void expect_bytes(std::uint64_t total);
  /// Appends a copy of `data`; waits while the ring is full. Throws IoError of this or an earlier transfer.
  void write(std::span<const std::byte> data);
  void write(std::string_view text) { write(as_byte_span(text)); }
  /// Room for the next bytes inside the ring, never empty, at most one buffer: fill a part of its front, then call
  /// advance. Valid until the next call of any other function. Throws as write.
  std::span<std::byte> space();
  /// Appends the first `bytes` bytes of what space() returned. Throws InternalError if it did not return as many.
  void advance(std::size_t bytes);
  /// Offset in the file of the next byte.
  std::uint64_t position() const;
  /// Writes what is left, syncs (File::sync) and closes. The name survives a power loss only after sync_directory.
  void finish();

 private:
  class Ring;
  std::unique_ptr<Ring> ring_;
};

/// Bytes [offset, offset + bytes) of a file.
struct FileRange {
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
  bool operator==(const FileRange&) const = default;
};

/// Reading ranges of one file, fetched ahead of the caller. Not thread-safe: one caller at a time. Threads exist only
/// during a call that fetches more than one buffer.
class StreamReader {
 public:
  /// Takes the next bytes of `ranges[range]`, `at` bytes into it; `bytes` is valid during the call.
  using Sink = std::function<void(std::size_t range, std::uint64_t at, std::span<const std::byte> bytes)>;

  /// Opens a regular file. Throws IoError.
  explicit StreamReader(const std::string& path, const StreamOptions& options = {},
                        FileSystem& files = posix_file_system());

  const std::string& path() const { return file_.path(); }
  /// Bytes in the file when it was opened.
  std::uint64_t size() const { return size_; }

  /// Hands all bytes of `ranges` to `sink`, on the calling thread, in the order of `ranges` and rising inside each, in
  /// pieces of at most one buffer; empty ranges are skipped. Ranges that follow closely on one another are fetched
  /// together; ranges that are small on average are read through the page cache. What `sink` throws goes on to the
  /// caller. Throws IoError with code ENODATA, before anything is read, if the file does not hold a range.
  void read(std::span<const FileRange> ranges, const Sink& sink);
  /// Fills `out` from `offset`.
  void read(std::uint64_t offset, std::span<std::byte> out);

  /// Bytes asked for so far.
  std::uint64_t bytes_asked() const { return asked_; }
  /// Bytes read from the file so far: as asked for, and in direct transfers rounded to whole blocks at both ends.
  std::uint64_t bytes_fetched() const { return fetched_; }

 private:
  File file_;
  StreamOptions options_;
  std::uint64_t size_;
  std::vector<AlignedBuffer> buffers_;
  std::uint64_t asked_ = 0;
  std::uint64_t fetched_ = 0;
};

}  // namespace castor
