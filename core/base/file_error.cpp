// The hints of file errors: one sentence for each errno that a user can do something about.
#include "core/base/file_error.h"

#include <cerrno>

#include <string.h>

#include "core/base/file.h"

namespace castor {
namespace {

// The closest folder at or above `path` that exists; empty if even that cannot be told.
std::string nearest_existing_folder(FileSystem& files, const std::string& path) {
  std::string folder = directory_of(path);
  for (;;) {
    FileStatus status;
    if (files.status(folder, status) == 0) return folder;
    const std::string above = directory_of(folder);
    if (above == folder) return {};
    folder = above;
  }
}

std::string missing_hint(FileSystem& files, const std::string& path) {
  const std::string folder = directory_of(path);
  const std::string existing = nearest_existing_folder(files, path);
  if (existing.empty() || existing == folder) return "check the name";
  return cat("its folder ", quote_name(folder), " does not exist (the nearest that does is ", quote_name(existing),
             "): make it or check the path");
}

std::string full_hint(FileSystem& files, const std::string& path, std::uint64_t needed_bytes) {
  const std::string folder = nearest_existing_folder(files, path);
  std::string text;
  if (needed_bytes > 0) text = cat(needed_bytes, " more bytes were needed, ");
  const IoResult room = folder.empty() ? IoResult{0, EINVAL} : files.free_bytes(folder);
  if (room.error == 0) text += cat(room.value, " are free: ");
  return text + "free space there or choose another folder";
}

std::string hint(FileSystem& files, const std::string& path, int error, std::uint64_t needed_bytes) {
  switch (error) {
    case ENOENT:
      return missing_hint(files, path);
    case ENOSPC:
    case EDQUOT:
      return full_hint(files, path, needed_bytes);
    case EACCES:
    case EPERM:
      return "this user may not: change the permissions of it or of its folder, or choose another path";
    case EROFS:
      return "the file system is mounted read-only: choose another path";
    case ENOTDIR:
      return "a part of the path is a file where a folder is needed: check the path";
    case EISDIR:
      return "it is a folder where a file is needed: check the path";
    case EEXIST:
      return "it is there already: remove it or choose another path";
    case ENOTEMPTY:
      return "the folder still holds files: another program may be writing there";
    case EMFILE:
    case ENFILE:
      return "too many files are open: raise the limit with 'ulimit -n'";
    case EFBIG:
      return "the file would exceed the size limit of the file system or of 'ulimit -f'";
    case EIO:
      return "the device failed: look at the kernel log ('dmesg') and check the disk";
    case EXDEV:
      return "the two paths lie on different file systems: choose paths on one";
    case ENAMETOOLONG:
      return "choose a shorter path";
    case ELOOP:
      return "symbolic links in the path form a loop";
    case ESTALE:
      return "the network file system lost the file: check its server and run again";
    case ENOMEM:
      return "the system has no memory left for it";
    default:
      return {};
  }
}

}  // namespace

std::string errno_text(int error) {
  // The _np functions are thread-safe and untranslated, unlike strerror.
  const char* description = strerrordesc_np(error);
  const char* name = strerrorname_np(error);
  if (description == nullptr || name == nullptr) return cat("error ", error);
  return cat(description, " (", name, ")");
}

std::string quote_name(std::string_view text, std::size_t limit) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out = "\"";
  for (const char c : text.substr(0, limit)) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20 || byte == 0x7f) {
      out += "\\x";
      out += kHex[byte >> 4];
      out += kHex[byte & 15];
    } else {
      out += c;
    }
  }
  out += '"';
  if (text.size() > limit) out += cat("... (", text.size(), " bytes)");
  return out;
}

IoError io_error(FileSystem& files, std::string_view operation, const std::string& path, int error,
                 std::string_view progress, std::uint64_t needed_bytes) {
  std::string text = cat(operation, " ", quote_name(path, 4096), ": ", errno_text(error));
  if (!progress.empty()) text += cat(" after ", progress);
  const std::string next = hint(files, path, error, needed_bytes);
  if (!next.empty()) text += "; " + next;
  return {text, path, error};
}

IoError ended_early(const std::string& path, std::uint64_t expected, std::uint64_t offset, std::uint64_t got) {
  return {cat("read ", quote_name(path, 4096), ": expected ", expected, " bytes at offset ", offset,
              ", the file ends after ", got, " of them: it was cut short or changed while it was read"),
          path, ENODATA};
}

bool is_unreadable(const IoError& error) { return error.code == EIO || error.code == ENODATA; }

}  // namespace castor
