// What is done with names: atomic replacement, folders, removal, listing, paths.
//
// Delicate: the order in write_file_atomically is the whole of its promise (data durable before the name points to it,
// the name durable before the caller goes on), and clean-up after a failure must not hide the failure.
#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <utility>

#include <unistd.h>

#include "core/base/file.h"
#include "core/base/file_error.h"

namespace castor {
namespace {

constexpr std::string_view kTemporaryPrefix = ".castor-tmp-";

struct TemporaryFile {
  std::string path;
  File file;
};

// The name holds the process and a counter, not the target's name, which may be as long as names can be. Another host
// on a shared disk may have the same process number, so an existing name is stepped over.
TemporaryFile make_temporary_file(const std::string& target, FileSystem& files) {
  static std::atomic<std::uint64_t> counter{0};
  constexpr int kAttempts = 1000;
  const std::string directory = directory_of(target);
  for (int attempt = 1;; ++attempt) {
    const std::string path = join_path(directory, cat(kTemporaryPrefix, getpid(), "-", counter++));
    try {
      return {path, File::open(path, OpenMode::create_new, files)};
    } catch (const IoError& error) {
      if (error.code == EEXIST && attempt < kAttempts) continue;
      throw IoError(cat("write ", quote_name(target, 4096), ": its folder takes no new file: ", error.what()), target,
                    error.code);
    }
  }
}

void remove_directory_entries(const std::string& path, FileSystem& files) {
  for (const DirectoryEntry& entry : list_directory(path, files)) {
    const std::string inner = join_path(path, entry.name);
    if (entry.kind == FileKind::directory) {
      remove_tree(inner, files);
    } else {
      remove_file(inner, files);
    }
  }
}

}  // namespace

void write_file_atomically(const std::string& path, const std::function<void(BufferedWriter&)>& write,
                           FileSystem& files) {
  TemporaryFile temporary = make_temporary_file(path, files);
  try {
    BufferedWriter writer(temporary.file);
    write(writer);
    writer.flush();
    temporary.file.sync();
    temporary.file.close();
    rename_file(temporary.path, path, files);
  } catch (const IoError& error) {
    files.unlink(temporary.path);  // best effort: the first failure is the one to report
    if (error.path != temporary.path) throw;
    throw IoError(cat("write ", quote_name(path, 4096), " through a temporary file: ", error.what()), path, error.code);
  } catch (...) {
    files.unlink(temporary.path);
    throw;
  }
  sync_directory(directory_of(path), files);
}

void write_file_atomically(const std::string& path, std::string_view contents, FileSystem& files) {
  write_file_atomically(
      path,
      [contents](BufferedWriter& writer) {
        writer.expect_bytes(contents.size());
        writer.write(contents);
      },
      files);
}

bool is_temporary_name(std::string_view name) { return name.starts_with(kTemporaryPrefix); }

std::size_t remove_temporary_files(const std::string& directory, FileSystem& files) {
  std::size_t removed = 0;
  for (const DirectoryEntry& entry : list_directory(directory, files)) {
    if (entry.kind != FileKind::file || !is_temporary_name(entry.name)) continue;
    if (remove_file(join_path(directory, entry.name), files)) ++removed;
  }
  return removed;
}

std::string read_text_file(const std::string& path, std::uint64_t limit, FileSystem& files) {
  const File file = File::open(path, OpenMode::read, files);
  std::string text(std::min(file.size(), limit), '\0');
  text.resize(file.read_up_to(std::as_writable_bytes(std::span(text)), 0));
  // Read to the end instead of trusting the size: files under /proc say 0.
  for (;;) {
    std::array<char, 4096> more;
    const std::size_t got = file.read_up_to(std::as_writable_bytes(std::span(more)), text.size());
    if (got > limit - text.size()) {
      throw IoError(
          cat("read ", quote_name(path, 4096), ": expected a text of at most ", limit, " bytes, it is longer"), path,
          EFBIG);
    }
    if (got == 0) return text;
    text.append(more.data(), got);
  }
}

bool exists(const std::string& path, FileSystem& files) {
  FileStatus status;
  const int error = files.status(path, status);
  if (error == ENOENT || error == ENOTDIR) return false;
  if (error != 0) throw io_error(files, "look up", path, error);
  return true;
}

bool is_directory(const std::string& path, FileSystem& files) {
  FileStatus status;
  const int error = files.status(path, status);
  if (error == ENOENT || error == ENOTDIR) return false;
  if (error != 0) throw io_error(files, "look up", path, error);
  return status.kind == FileKind::directory;
}

std::uint64_t file_size(const std::string& path, FileSystem& files) {
  FileStatus status;
  int error = files.status(path, status);
  if (error == 0 && status.kind == FileKind::directory) error = EISDIR;
  if (error == 0 && status.kind == FileKind::other) error = EINVAL;
  if (error != 0) throw io_error(files, "get the size of", path, error);
  return status.bytes;
}

std::uint64_t free_bytes(const std::string& path, FileSystem& files) {
  const IoResult result = files.free_bytes(path);
  if (result.error != 0) throw io_error(files, "get the free space of", path, result.error);
  return result.value;
}

void rename_file(const std::string& from, const std::string& to, FileSystem& files) {
  const int error = files.rename(from, to);
  if (error != 0) throw io_error(files, cat("rename ", quote_name(from, 4096), " to"), to, error);
}

bool remove_file(const std::string& path, FileSystem& files) {
  const int error = files.unlink(path);
  if (error == ENOENT) return false;
  if (error != 0) throw io_error(files, "remove", path, error);
  return true;
}

bool remove_tree(const std::string& path, FileSystem& files) {
  // Listing first would follow a symbolic link given as `path`; unlink never does, and tells a folder apart.
  int error = files.unlink(path);
  if (error == 0) return true;
  if (error == ENOENT) return false;
  if (error != EISDIR && error != EPERM) throw io_error(files, "remove", path, error);
  remove_directory_entries(path, files);
  error = files.remove_directory(path);
  if (error != 0 && error != ENOENT) throw io_error(files, "remove the folder", path, error);
  return true;
}

void make_directories(const std::string& path, FileSystem& files) {
  FileStatus status;
  int error = files.status(path, status);
  if (error == 0) {
    if (status.kind != FileKind::directory) throw io_error(files, "make the folder", path, ENOTDIR);
    return;
  }
  if (error != ENOENT) throw io_error(files, "make the folder", path, error);
  const std::string above = directory_of(path);
  if (above != path) make_directories(above, files);
  error = files.make_directory(path);
  // Another process, a rank on the same disk say, may have been quicker.
  if (error == EEXIST && is_directory(path, files)) error = 0;
  if (error != 0) throw io_error(files, "make the folder", path, error);
  sync_directory(above, files);
}

std::vector<DirectoryEntry> list_directory(const std::string& path, FileSystem& files) {
  std::vector<DirectoryEntry> entries;
  const int error = files.list(path, entries);
  if (error != 0) throw io_error(files, "list", path, error);
  std::sort(entries.begin(), entries.end(),
            [](const DirectoryEntry& a, const DirectoryEntry& b) { return a.name < b.name; });
  return entries;
}

void sync_directory(const std::string& path, FileSystem& files) {
  int error = 0;
  do {
    error = files.sync_directory(path);
  } while (error == EINTR);
  if (error != 0) throw io_error(files, "sync the folder", path, error);
}

std::string directory_of(std::string_view path) {
  while (path.size() > 1 && path.back() == '/') path.remove_suffix(1);
  const std::size_t slash = path.rfind('/');
  if (slash == std::string_view::npos) return ".";
  path = path.substr(0, slash + 1);
  while (path.size() > 1 && path.back() == '/') path.remove_suffix(1);
  return std::string(path);
}

std::string file_name_of(std::string_view path) {
  while (!path.empty() && path.back() == '/') path.remove_suffix(1);
  const std::size_t slash = path.rfind('/');
  return std::string(slash == std::string_view::npos ? path : path.substr(slash + 1));
}

std::string join_path(std::string_view directory, std::string_view name) {
  if (directory.empty() || name.starts_with('/')) return std::string(name);
  return cat(directory, directory.back() == '/' ? "" : "/", name);
}

}  // namespace castor
