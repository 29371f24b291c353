// The seam between Castor and the operating system's files: what `File` and its free functions call, and what the
// fault-injecting and in-memory file systems replace.
//
// Delicate: every operation mirrors one system call and reports as one does: an errno, or a count that may be short.
// Retrying (EINTR, short transfers) and turning errno into IoError happen above the seam, so that faults injected
// below it exercise them. Everyone but core/base/file*.cpp and tests of faults wants core/base/file.h instead.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace castor {

/// How a file is opened. The writing modes also read.
enum class OpenMode {
  read,        ///< an existing regular file, read only
  create,      ///< made if missing, emptied if there
  create_new,  ///< made; EEXIST if there
  append,      ///< made if missing, contents kept
};

/// What a name in a directory stands for.
enum class FileKind { file, directory, other };

/// What `FileSystem::status` tells.
struct FileStatus {
  FileKind kind = FileKind::other;
  std::uint64_t bytes = 0;  ///< size of a regular file; 0 otherwise
};

/// One name in a directory; `kind` is of the name itself: a symbolic link is `other`.
struct DirectoryEntry {
  std::string name;
  FileKind kind = FileKind::other;
  bool operator==(const DirectoryEntry&) const = default;
};

/// Outcome of an operation that yields a number: `value` counts only if `error`, an errno, is 0.
struct IoResult {
  std::uint64_t value = 0;
  int error = 0;
};

/// A file that a FileSystem opened; the destructor closes it. Calls on one object at disjoint offsets may run in
/// parallel.
class OpenFile {
 public:
  OpenFile() = default;
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;
  virtual ~OpenFile() = default;

  /// Reads up to out.size() bytes at `offset`; value = bytes read, 0 only at the file's end (or for an empty `out`).
  virtual IoResult read(std::span<std::byte> out, std::uint64_t offset) = 0;
  /// Writes up to data.size() bytes at `offset`, growing the file; value = bytes taken.
  virtual IoResult write(std::span<const std::byte> data, std::uint64_t offset) = 0;
  /// Makes the contents survive a power loss (not the name: that is the directory's). Returns an errno.
  virtual int sync() = 0;
  /// value = bytes in the file.
  virtual IoResult size() = 0;
  /// Maps the first `bytes` (> 0, at most the size) read only; the memory lives as long as `view`. Returns an errno.
  virtual int map(std::uint64_t bytes, std::shared_ptr<const std::byte>& view) = 0;
  /// Asks that transfers bypass the system's cache, or no longer do. Returns whether they will from now on: a file
  /// system may not be able to, and goes back to ordinary ones at the first transfer whose alignment does not allow it.
  /// Changes speed, never what is read, written or synced; not while a transfer runs.
  virtual bool set_direct(bool direct) {
    static_cast<void>(direct);
    return false;
  }
  /// Sets room for the first `bytes` bytes aside, which read as zeros until they are written, so that writing them
  /// cannot find the disk full. Returns an errno; a file system that cannot promise it returns 0 and does nothing.
  virtual int reserve(std::uint64_t bytes) {
    static_cast<void>(bytes);
    return 0;
  }
  /// Closes; nothing else may be called afterwards. Returns an errno that says an earlier write was lost.
  virtual int close() = 0;
};

/// Names and directories. Functions return an errno, 0 for success, unless they say otherwise. Thread-safe.
class FileSystem {
 public:
  FileSystem() = default;
  FileSystem(const FileSystem&) = delete;
  FileSystem& operator=(const FileSystem&) = delete;
  virtual ~FileSystem() = default;

  /// Opens `path`. A directory gives EISDIR; reading anything but a regular file gives EINVAL.
  virtual int open(const std::string& path, OpenMode mode, std::unique_ptr<OpenFile>& file) = 0;
  /// What `path` is, symbolic links followed.
  virtual int status(const std::string& path, FileStatus& status) = 0;
  /// Gives `from` the name `to`, replacing a file there in one step.
  virtual int rename(const std::string& from, const std::string& to) = 0;
  /// Removes the name of a file.
  virtual int unlink(const std::string& path) = 0;
  /// Makes one directory; its parent must exist.
  virtual int make_directory(const std::string& path) = 0;
  /// Removes one empty directory.
  virtual int remove_directory(const std::string& path) = 0;
  /// The names in a directory without "." and "..", in no particular order.
  virtual int list(const std::string& path, std::vector<DirectoryEntry>& entries) = 0;
  /// Makes the names in a directory (created, renamed, removed) survive a power loss.
  virtual int sync_directory(const std::string& path) = 0;
  /// value = bytes that may still be written to the file system holding the existing `path`.
  virtual IoResult free_bytes(const std::string& path) = 0;
};

/// The operating system's files. One object for the process, without state.
FileSystem& posix_file_system();

}  // namespace castor
