// Files: the only way Castor opens, reads, writes, syncs, renames, removes and lists anything on disk.
//
// Every function throws IoError{path, errno} with a text that says the operation, what the system answered and what to
// do next; EINTR and short transfers are handled here. Delicate: durability is explicit. A file's bytes survive a power
// loss after File::sync, its name after sync_directory; write_file_atomically and make_directories do both. Each
// function takes the file system last (core/base/file_system.h), the operating system's if left out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/error.h"
#include "core/base/file_system.h"

namespace castor {

/// The bytes of a text.
inline std::span<const std::byte> as_byte_span(std::string_view text) { return std::as_bytes(std::span(text)); }

/// An open file. Move-only; the destructor closes without reporting errors, `close` reports them.
/// Reads, and writes at disjoint offsets, may run in parallel on one File.
class File {
 public:
  /// Opens `path`. Throws IoError; reading takes regular files only.
  static File open(const std::string& path, OpenMode mode, FileSystem& files = posix_file_system());

  File(File&&) noexcept = default;
  File& operator=(File&&) noexcept = default;
  ~File() = default;

  const std::string& path() const { return path_; }
  FileSystem& file_system() const { return *files_; }

  /// Bytes in the file now.
  std::uint64_t size() const;
  /// Fills `out` from `offset` as far as the file goes; returns the bytes read, fewer than out.size() only at the end.
  std::size_t read_up_to(std::span<std::byte> out, std::uint64_t offset) const;
  /// Fills all of `out` from `offset`. Throws IoError with code ENODATA if the file ends before.
  void read_exact(std::span<std::byte> out, std::uint64_t offset) const { read_at_least(out, offset, out.size()); }
  /// Asks for all of `out` but is content with its first `enough` bytes, as direct transfers must be at the file's end.
  /// Returns the bytes read, from `enough` to out.size(). Throws IoError with code ENODATA if the file ends before.
  std::size_t read_at_least(std::span<std::byte> out, std::uint64_t offset, std::size_t enough) const;
  /// Writes all of `data` at `offset`; the file grows as needed, a gap reads as zeros.
  void write_exact(std::span<const std::byte> data, std::uint64_t offset);
  /// Says how large the file will be, so that a full disk can be reported with the bytes that were still needed.
  void expect_bytes(std::uint64_t total) { expected_bytes_ = total; }
  /// Asks that transfers bypass the system's page cache (offset, length and address aligned to kDirectAlignment of
  /// core/base/file_stream.h; others go through the cache), or no longer do. Returns whether they will. Not while a
  /// transfer runs.
  bool set_direct(bool direct);
  /// Makes the file at least `bytes` long, with room for all of them set aside: later writes inside cannot find the
  /// disk full. What was not written reads as zeros.
  void reserve(std::uint64_t bytes);
  /// Makes the contents survive a power loss. After a failure the contents are unknown: write another file, do not
  /// retry.
  void sync();
  /// Closes; throws IoError if the system reports that earlier writes were lost.
  void close();

 private:
  friend class MappedFile;
  File(std::unique_ptr<OpenFile> open_file, std::string path, FileSystem& files);
  OpenFile& handle() const;
  std::size_t read_until(std::span<std::byte> out, std::uint64_t offset, std::size_t enough) const;

  std::unique_ptr<OpenFile> file_;
  std::string path_;
  FileSystem* files_;
  std::uint64_t expected_bytes_ = 0;
};

/// Sequential writing through one bounded buffer. What is not flushed when it is destroyed is dropped, so that an
/// exception on the way never completes a file by accident.
class BufferedWriter {
 public:
  static constexpr std::size_t kDefaultBufferBytes = std::size_t{1} << 20;

  /// Writes to `file`, which must outlive it, from `offset` on; never holds more than `buffer_bytes` (>= 1).
  explicit BufferedWriter(File& file, std::uint64_t offset = 0, std::size_t buffer_bytes = kDefaultBufferBytes);
  BufferedWriter(const BufferedWriter&) = delete;
  BufferedWriter& operator=(const BufferedWriter&) = delete;
  ~BufferedWriter() = default;

  /// Appends; pieces as large as the buffer go straight to the file.
  void write(std::span<const std::byte> data);
  void write(std::string_view text) { write(as_byte_span(text)); }
  /// As File::expect_bytes.
  void expect_bytes(std::uint64_t total) { file_.expect_bytes(total); }
  /// Hands what is buffered to the file.
  void flush();
  /// Offset in the file of the next byte.
  std::uint64_t position() const { return flushed_end_ + buffer_.size(); }

 private:
  File& file_;
  std::uint64_t flushed_end_;
  std::size_t buffer_bytes_;
  std::vector<std::byte> buffer_;
};

/// A file mapped into memory, read only. Delicate: if another program shortens the file afterwards, touching the lost
/// part kills this process (SIGBUS); map only files that nobody rewrites in place, and read the others.
class MappedFile {
 public:
  /// Maps the whole of a regular file; an empty one gives an empty view.
  static MappedFile open(const std::string& path, FileSystem& files = posix_file_system());

  const std::string& path() const { return path_; }
  /// All bytes; valid while this object, or a copy of it, lives.
  std::span<const std::byte> bytes() const { return {view_.get(), size_}; }
  /// Bytes [offset, offset + count). Throws IoError with code ENODATA if the file does not hold them all.
  std::span<const std::byte> range(std::uint64_t offset, std::uint64_t count) const;

 private:
  MappedFile(std::string path, std::shared_ptr<const std::byte> view, std::size_t size)
      : path_(std::move(path)), view_(std::move(view)), size_(size) {}

  std::string path_;
  std::shared_ptr<const std::byte> view_;
  std::size_t size_;
};

/// Writes a file so that `path` holds, at every moment and after any crash, the old contents or the new ones in full:
/// a temporary file in the same folder, `write`, sync, rename, sync of the folder. If anything fails, `write` throwing
/// included, the temporary file is removed and the exception goes on. Only when the last step fails is the new file in
/// place although an error is thrown: it may then not survive a power loss. A symbolic link at `path` is replaced.
void write_file_atomically(const std::string& path, const std::function<void(BufferedWriter&)>& write,
                           FileSystem& files = posix_file_system());
/// The same with the contents at hand.
void write_file_atomically(const std::string& path, std::string_view contents, FileSystem& files = posix_file_system());

/// True for the names that write_file_atomically gives its temporary files.
bool is_temporary_name(std::string_view name);
/// Removes temporary files that killed programs left in `directory`; only for its sole writer. Returns how many.
std::size_t remove_temporary_files(const std::string& directory, FileSystem& files = posix_file_system());

/// The whole of a text file. Throws IoError with code EFBIG if it holds more than `limit` bytes.
std::string read_text_file(const std::string& path, std::uint64_t limit = std::uint64_t{64} << 20,
                           FileSystem& files = posix_file_system());

/// True if something has this name; throws only if that cannot be told (no permission, device failure).
bool exists(const std::string& path, FileSystem& files = posix_file_system());
/// True if `path` is a folder.
bool is_directory(const std::string& path, FileSystem& files = posix_file_system());
/// Bytes of the regular file `path`. Throws IoError if it is missing (ENOENT) or something else (EINVAL, EISDIR).
std::uint64_t file_size(const std::string& path, FileSystem& files = posix_file_system());
/// Bytes that may still be written where the existing `path` lies.
std::uint64_t free_bytes(const std::string& path, FileSystem& files = posix_file_system());

/// Renames a file or folder, replacing a file at `to` in one step; both must lie on one file system.
void rename_file(const std::string& from, const std::string& to, FileSystem& files = posix_file_system());
/// Removes a file. Returns false if there was none.
bool remove_file(const std::string& path, FileSystem& files = posix_file_system());
/// Removes a folder and all it holds; symbolic links are removed, not followed. Returns false if there was none.
bool remove_tree(const std::string& path, FileSystem& files = posix_file_system());
/// Makes a folder and the missing ones above it, durably; no error if it is there already.
void make_directories(const std::string& path, FileSystem& files = posix_file_system());
/// The names in a folder, sorted by byte value.
std::vector<DirectoryEntry> list_directory(const std::string& path, FileSystem& files = posix_file_system());
/// Makes created, renamed and removed names in a folder survive a power loss.
void sync_directory(const std::string& path, FileSystem& files = posix_file_system());

/// The folder part: "a/b" gives "a", "a" gives ".", "/a" gives "/", "/" gives "/".
std::string directory_of(std::string_view path);
/// The last part: "a/b/" gives "b", "/" gives "".
std::string file_name_of(std::string_view path);
/// directory + "/" + name; an absolute name, or an empty directory, gives the name.
std::string join_path(std::string_view directory, std::string_view name);

}  // namespace castor
