// flock on a file that its holder makes and removes.
//
// Delicate: between opening the file and locking it, the previous holder may have removed it. The lock then is on a
// file that nobody else will ever open; comparing the inode behind the name with the locked one tells.
#include "core/base/file_lock.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/file_error.h"
#include "core/base/file_system.h"

namespace castor {
namespace {

bool still_has_its_name(int descriptor, const std::string& path) {
  struct stat held {};
  struct stat named {};
  return ::fstat(descriptor, &held) == 0 && ::stat(path.c_str(), &named) == 0 && held.st_dev == named.st_dev &&
         held.st_ino == named.st_ino;
}

}  // namespace

FileLock::FileLock(FileLock&& other) noexcept
    : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)) {}

FileLock::~FileLock() {
  if (descriptor_ < 0) return;
  ::unlink(path_.c_str());  // before the lock is let go: afterwards it could be the next holder's
  ::close(descriptor_);
}

std::optional<FileLock> FileLock::try_take(const std::string& path, std::string_view note) {
  for (;;) {
    const int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (descriptor < 0 && errno == EINTR) continue;
    if (descriptor < 0) throw io_error(posix_file_system(), "create the lock", path, errno);
    int error = 0;
    do {
      error = ::flock(descriptor, LOCK_EX | LOCK_NB) == 0 ? 0 : errno;
    } while (error == EINTR);
    if (error == 0 && still_has_its_name(descriptor, path)) {
      // Best effort: a lock without its note is a lock. The file may be that of a holder who was killed.
      [[maybe_unused]] const bool is_noted =
          ::ftruncate(descriptor, 0) == 0 && ::pwrite(descriptor, note.data(), note.size(), 0) >= 0;
      return FileLock(path, descriptor);
    }
    ::close(descriptor);
    if (error == EWOULDBLOCK) return std::nullopt;
    if (error != 0) throw io_error(posix_file_system(), "lock", path, error);
  }
}

std::string FileLock::note_of(const std::string& path) {
  constexpr std::size_t kMost = 1024;
  std::string note(kMost, '\0');
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  const ssize_t got = descriptor < 0 ? -1 : ::pread(descriptor, note.data(), note.size(), 0);
  if (descriptor >= 0) ::close(descriptor);
  note.resize(static_cast<std::size_t>(std::max<ssize_t>(got, 0)));
  return note;
}

}  // namespace castor
