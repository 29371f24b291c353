// A lock that several processes may wait for: whoever prepares something for all of them (a download, say) holds it.
//
// It is the kernel's (flock): it is gone when its holder dies, however that happens, so there are no stale locks to
// clean up. Delicate: the file at `path` exists only while someone holds or wants the lock, so a lock counts only if
// its file still has the name. It guards real files; the file systems of tests have no other processes to keep out.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace castor {

/// A held lock, released by the destructor. Move-only. Threads of one process exclude each other as processes do.
class FileLock {
 public:
  /// Takes the lock named `path`, whose folder must exist, if nobody holds it. Never waits.
  ///   note  left in the file for those who are refused: who holds it, say
  /// Throws IoError if the file cannot be made, or if the disk knows no locks.
  static std::optional<FileLock> try_take(const std::string& path, std::string_view note = {});
  /// The note of whoever holds the lock now; empty if that cannot be told.
  static std::string note_of(const std::string& path);

  FileLock(FileLock&& other) noexcept;
  FileLock& operator=(FileLock&&) = delete;
  ~FileLock();

 private:
  FileLock(std::string path, int descriptor) : path_(std::move(path)), descriptor_(descriptor) {}

  std::string path_;
  int descriptor_;
};

}  // namespace castor
