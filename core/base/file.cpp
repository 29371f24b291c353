// Open files: transfers that always finish or throw, the bounded writer and the read-only mapping.
//
// Delicate: a system call may be interrupted (EINTR) or do part of the work; loops here carry on from what was done. A
// failed sync is never retried: Linux drops the dirty pages after reporting once, so a second sync would lie.
#include "core/base/file.h"

#include <algorithm>
#include <cerrno>
#include <limits>
#include <utility>

#include "core/base/file_error.h"

namespace castor {
namespace {

constexpr std::uint64_t kMaxOffset = std::numeric_limits<std::int64_t>::max();

std::string_view open_operation(OpenMode mode) {
  switch (mode) {
    case OpenMode::read:
      return "open";
    case OpenMode::create:
    case OpenMode::create_new:
      return "create";
    case OpenMode::append:
      return "open for appending";
  }
  return "open";
}

std::string progress_text(std::uint64_t done, std::uint64_t total, std::uint64_t offset) {
  return cat(done, " of ", total, " bytes at offset ", offset);
}

}  // namespace

File::File(std::unique_ptr<OpenFile> open_file, std::string path, FileSystem& files)
    : file_(std::move(open_file)), path_(std::move(path)), files_(&files) {}

File File::open(const std::string& path, OpenMode mode, FileSystem& files) {
  std::unique_ptr<OpenFile> handle;
  int error = 0;
  do {
    error = files.open(path, mode, handle);
  } while (error == EINTR);
  if (error == EINVAL && mode == OpenMode::read) {
    throw IoError(cat("open ", quote_name(path, 4096), ": expected a regular file, it is a pipe, socket or device"),
                  path, error);
  }
  if (error != 0) throw io_error(files, open_operation(mode), path, error);
  return {std::move(handle), path, files};
}

OpenFile& File::handle() const {
  if (file_ == nullptr)
    throw InternalError(cat("file ", quote_name(path_, 4096), ": used after it was closed or moved from"));
  return *file_;
}

std::uint64_t File::size() const {
  const IoResult result = handle().size();
  if (result.error != 0) throw io_error(*files_, "get the size of", path_, result.error);
  return result.value;
}

std::size_t File::read_until(std::span<std::byte> out, std::uint64_t offset, std::size_t enough) const {
  OpenFile& file = handle();
  std::size_t done = 0;
  while (done < enough) {
    if (offset + done > kMaxOffset) break;
    const IoResult result = file.read(out.subspan(done), offset + done);
    if (result.error == EINTR) continue;
    if (result.error != 0) {
      throw io_error(*files_, "read", path_, result.error, progress_text(done, out.size(), offset));
    }
    if (result.value == 0) break;
    done += result.value;
  }
  return done;
}

std::size_t File::read_up_to(std::span<std::byte> out, std::uint64_t offset) const {
  return read_until(out, offset, out.size());
}

std::size_t File::read_at_least(std::span<std::byte> out, std::uint64_t offset, std::size_t enough) const {
  const std::size_t done = read_until(out, offset, enough);
  if (done < enough) throw ended_early(path_, enough, offset, done);
  return done;
}

void File::write_exact(std::span<const std::byte> data, std::uint64_t offset) {
  OpenFile& file = handle();
  std::size_t done = 0;
  while (done < data.size()) {
    IoResult result{0, EFBIG};
    if (offset <= kMaxOffset - data.size()) result = file.write(data.subspan(done), offset + done);
    if (result.error == EINTR) continue;
    if (result.error == 0 && result.value == 0) result.error = EIO;  // no progress and no reason: do not spin
    if (result.error != 0) {
      const std::uint64_t end = std::max<std::uint64_t>(offset + data.size(), expected_bytes_);
      throw io_error(*files_, "write", path_, result.error, progress_text(done, data.size(), offset),
                     end - (offset + done));
    }
    done += result.value;
  }
}

bool File::set_direct(bool direct) { return handle().set_direct(direct); }

void File::reserve(std::uint64_t bytes) {
  OpenFile& file = handle();
  int error = 0;
  do {
    error = file.reserve(bytes);
  } while (error == EINTR);
  if (error != 0) throw io_error(*files_, "reserve space for", path_, error, {}, bytes);
  const std::byte end{};
  if (bytes > size()) write_exact({&end, 1}, bytes - 1);  // a file system that promises nothing
}

void File::sync() {
  OpenFile& file = handle();
  int error = 0;
  do {
    error = file.sync();
  } while (error == EINTR);
  if (error != 0) throw io_error(*files_, "sync", path_, error);
}

void File::close() {
  const int error = handle().close();
  file_.reset();
  // Linux has released the descriptor even when it reports EINTR: calling again could close someone else's.
  if (error != 0 && error != EINTR) throw io_error(*files_, "close", path_, error);
}

BufferedWriter::BufferedWriter(File& file, std::uint64_t offset, std::size_t buffer_bytes)
    : file_(file), flushed_end_(offset), buffer_bytes_(std::max<std::size_t>(buffer_bytes, 1)) {}

void BufferedWriter::write(std::span<const std::byte> data) {
  if (buffer_.size() + data.size() > buffer_bytes_) {
    flush();
    if (data.size() >= buffer_bytes_) {
      file_.write_exact(data, flushed_end_);
      flushed_end_ += data.size();
      return;
    }
    buffer_.reserve(buffer_bytes_);
  }
  buffer_.insert(buffer_.end(), data.begin(), data.end());
}

void BufferedWriter::flush() {
  if (buffer_.empty()) return;
  file_.write_exact(buffer_, flushed_end_);
  flushed_end_ += buffer_.size();
  buffer_.clear();
}

MappedFile MappedFile::open(const std::string& path, FileSystem& files) {
  const File file = File::open(path, OpenMode::read, files);
  const std::uint64_t size = file.size();
  std::shared_ptr<const std::byte> view;
  if (size > 0) {
    const int error = size > kMaxOffset ? EFBIG : file.handle().map(size, view);
    if (error != 0) throw io_error(files, "map", path, error, cat("asking for ", size, " bytes"));
  }
  return {path, std::move(view), static_cast<std::size_t>(size)};
}

std::span<const std::byte> MappedFile::range(std::uint64_t offset, std::uint64_t count) const {
  const std::uint64_t held = offset < size_ ? size_ - offset : 0;
  if (count > held || offset > size_) throw ended_early(path_, count, offset, held);
  return bytes().subspan(offset, count);
}

}  // namespace castor
