// The operating system's files: one system call an operation, errno handed up untouched.
//
// Delicate: every descriptor is close-on-exec (ranks are started as processes), opening never blocks on a pipe, and
// positions are always explicit (pread, pwrite), so that one file can be read by several threads.
#include <atomic>
#include <cerrno>
#include <limits>
#include <string_view>

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "core/base/file_system.h"

namespace castor {
namespace {

FileKind kind_of(mode_t mode) {
  if (S_ISREG(mode)) return FileKind::file;
  if (S_ISDIR(mode)) return FileKind::directory;
  return FileKind::other;
}

// A C string would end at the first NUL and name another file than the one asked for; no file has such a name.
bool has_nul(const std::string& path) { return path.find('\0') != std::string::npos; }

IoResult transferred(ssize_t count) {
  if (count < 0) return {0, errno};
  return {static_cast<std::uint64_t>(count), 0};
}

class PosixFile : public OpenFile {
 public:
  explicit PosixFile(int descriptor) : descriptor_(descriptor) {}
  ~PosixFile() override {
    if (descriptor_ >= 0) ::close(descriptor_);
  }

  IoResult read(std::span<std::byte> out, std::uint64_t offset) override {
    return or_through_cache(
        [&] { return transferred(::pread(descriptor_, out.data(), out.size(), static_cast<off_t>(offset))); });
  }
  IoResult write(std::span<const std::byte> data, std::uint64_t offset) override {
    return or_through_cache(
        [&] { return transferred(::pwrite(descriptor_, data.data(), data.size(), static_cast<off_t>(offset))); });
  }
  bool set_direct(bool direct) override {
    if (direct == direct_) return direct;
    const int flags = ::fcntl(descriptor_, F_GETFL);
    if (flags < 0 || ::fcntl(descriptor_, F_SETFL, direct ? flags | O_DIRECT : flags & ~O_DIRECT) != 0) return direct_;
    direct_ = direct;
    return direct;
  }
  int reserve(std::uint64_t bytes) override {
    return bytes == 0 ? 0 : ::posix_fallocate(descriptor_, 0, static_cast<off_t>(bytes));
  }
  int sync() override { return ::fsync(descriptor_) == 0 ? 0 : errno; }
  IoResult size() override {
    struct stat status {};
    if (::fstat(descriptor_, &status) != 0) return {0, errno};
    return {static_cast<std::uint64_t>(status.st_size), 0};
  }
  int map(std::uint64_t bytes, std::shared_ptr<const std::byte>& view) override {
    if (bytes > std::numeric_limits<std::size_t>::max()) return ENOMEM;
    const auto length = static_cast<std::size_t>(bytes);
    void* start = ::mmap(nullptr, length, PROT_READ, MAP_SHARED, descriptor_, 0);
    if (start == MAP_FAILED) return errno;
    view.reset(static_cast<const std::byte*>(start), [start, length](const std::byte*) { ::munmap(start, length); });
    return 0;
  }
  int close() override {
    const int descriptor = descriptor_;
    descriptor_ = -1;
    return ::close(descriptor) == 0 ? 0 : errno;
  }

 private:
  // Direct transfers that the file system does not take (alignment, mostly) are refused as a whole with EINVAL.
  template <class Transfer>
  IoResult or_through_cache(const Transfer& transfer) {
    const bool was_direct = direct_;
    const IoResult result = transfer();
    if (result.error != EINVAL || !was_direct || set_direct(false)) return result;
    return transfer();
  }

  int descriptor_;
  std::atomic<bool> direct_ = false;
};

int flags_of(OpenMode mode) {
  switch (mode) {
    case OpenMode::read:
      return O_RDONLY;
    case OpenMode::create:
      return O_RDWR | O_CREAT | O_TRUNC;
    case OpenMode::create_new:
      return O_RDWR | O_CREAT | O_EXCL;
    case OpenMode::append:  // not O_APPEND: Linux would then ignore the offset of pwrite
      return O_RDWR | O_CREAT;
  }
  return O_RDONLY;
}

class PosixFileSystem : public FileSystem {
 public:
  int open(const std::string& path, OpenMode mode, std::unique_ptr<OpenFile>& file) override {
    if (has_nul(path)) return ENOENT;
    const int descriptor = ::open(path.c_str(), flags_of(mode) | O_CLOEXEC | O_NONBLOCK, 0666);
    if (descriptor < 0) return errno;
    auto opened = std::make_unique<PosixFile>(descriptor);
    struct stat status {};
    if (::fstat(descriptor, &status) != 0) return errno;
    if (S_ISDIR(status.st_mode)) return EISDIR;
    if (mode == OpenMode::read && !S_ISREG(status.st_mode)) return EINVAL;
    file = std::move(opened);
    return 0;
  }

  int status(const std::string& path, FileStatus& out) override {
    if (has_nul(path)) return ENOENT;
    struct stat status {};
    if (::stat(path.c_str(), &status) != 0) return errno;
    out.kind = kind_of(status.st_mode);
    out.bytes = out.kind == FileKind::file ? static_cast<std::uint64_t>(status.st_size) : 0;
    return 0;
  }

  int rename(const std::string& from, const std::string& to) override {
    if (has_nul(from) || has_nul(to)) return ENOENT;
    return ::rename(from.c_str(), to.c_str()) == 0 ? 0 : errno;
  }
  int unlink(const std::string& path) override {
    if (has_nul(path)) return ENOENT;
    return ::unlink(path.c_str()) == 0 ? 0 : errno;
  }
  int make_directory(const std::string& path) override {
    if (has_nul(path)) return ENOENT;
    return ::mkdir(path.c_str(), 0777) == 0 ? 0 : errno;
  }
  int remove_directory(const std::string& path) override {
    if (has_nul(path)) return ENOENT;
    return ::rmdir(path.c_str()) == 0 ? 0 : errno;
  }

  int list(const std::string& path, std::vector<DirectoryEntry>& entries) override {
    if (has_nul(path)) return ENOENT;
    const std::unique_ptr<DIR, int (*)(DIR*)> directory(::opendir(path.c_str()), ::closedir);
    if (directory == nullptr) return errno;
    entries.clear();
    for (;;) {
      errno = 0;
      const dirent* entry = ::readdir(directory.get());
      if (entry == nullptr) return errno;
      const std::string_view name = entry->d_name;
      if (name == "." || name == "..") continue;
      FileKind kind = FileKind::other;
      if (entry->d_type == DT_REG) {
        kind = FileKind::file;
      } else if (entry->d_type == DT_DIR) {
        kind = FileKind::directory;
      } else if (entry->d_type == DT_UNKNOWN) {  // some file systems leave it to fstatat
        struct stat status {};
        if (::fstatat(::dirfd(directory.get()), entry->d_name, &status, AT_SYMLINK_NOFOLLOW) != 0) {
          if (errno == ENOENT) continue;  // removed meanwhile
          return errno;
        }
        kind = kind_of(status.st_mode);
      }
      entries.push_back({std::string(name), kind});
    }
  }

  int sync_directory(const std::string& path) override {
    if (has_nul(path)) return ENOENT;
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0) return errno;
    const int error = ::fsync(descriptor) == 0 ? 0 : errno;
    ::close(descriptor);
    return error == EINVAL ? 0 : error;  // file systems whose directories need no syncing say EINVAL
  }

  IoResult free_bytes(const std::string& path) override {
    if (has_nul(path)) return {0, ENOENT};
    struct statvfs status {};
    if (::statvfs(path.c_str(), &status) != 0) return {0, errno};
    return {static_cast<std::uint64_t>(status.f_bavail) * status.f_frsize, 0};
  }
};

}  // namespace

FileSystem& posix_file_system() {
  static PosixFileSystem files;
  return files;
}

}  // namespace castor
