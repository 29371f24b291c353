// IDX through a small byte stream that hides whether the file is gzipped.
//
// Delicate: a deflate stream expands at most 1032 times, so sizes that a file of this length cannot hold are refused
// before any memory is taken; what it claims within that is unpacked twice, to be counted first and kept then. zlib
// checks the gzip checksum when its stream ends, so the end must be reached and nothing may follow it.
#include "formats/idx_file.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <memory>
#include <optional>
#include <utility>

#include <zlib.h>

#include "core/base/file_error.h"
#include "formats/array_shape.h"

namespace castor::formats {
namespace {

constexpr int kMaxAxes = 8;
constexpr int kUnsignedByte = 0x08;
constexpr std::size_t kInputBytes = std::size_t{256} << 10;
constexpr std::size_t kSkipBytes = std::size_t{4} << 10;
constexpr std::uint64_t kMaxExpansion = 1032;  // of deflate

[[noreturn]] void fail_at(const std::string& file, std::uint64_t offset, const std::string& what) {
  throw FormatError(cat("idx ", quote_name(file, 4096), ": at byte ", offset, ": ", what), file, offset);
}

// The bytes of an IDX file in order.
class ByteStream {
 public:
  ByteStream() = default;
  ByteStream(const ByteStream&) = delete;
  ByteStream& operator=(const ByteStream&) = delete;
  virtual ~ByteStream() = default;
  // Fills `out` as far as the stream goes; returns the bytes given, fewer than asked for only at its end.
  virtual std::size_t read(std::span<std::uint8_t> out) = 0;
  // Where in the file on disk the stream is.
  virtual std::uint64_t file_offset() const = 0;
  // Most bytes the whole stream can have.
  virtual std::uint64_t max_bytes() const = 0;
  // True if the stream may have more bytes than the file.
  virtual bool is_compressed() const = 0;
};

class PlainStream : public ByteStream {
 public:
  explicit PlainStream(const File& file) : file_(file), size_(file.size()) {}
  std::size_t read(std::span<std::uint8_t> out) override {
    const std::size_t got = file_.read_up_to(std::as_writable_bytes(out), offset_);
    offset_ += got;
    return got;
  }
  std::uint64_t file_offset() const override { return offset_; }
  std::uint64_t max_bytes() const override { return size_; }
  bool is_compressed() const override { return false; }

 private:
  const File& file_;
  std::uint64_t size_;
  std::uint64_t offset_ = 0;
};

class GzipStream : public ByteStream {
 public:
  explicit GzipStream(const File& file)
      : file_(file), size_(file.size()), input_(std::clamp<std::uint64_t>(size_, 1, kInputBytes)) {
    // 16 + 15: a gzip wrapper around the largest window.
    if (inflateInit2(&state_, 16 + MAX_WBITS) != Z_OK) {
      throw OutOfMemory(cat("idx ", quote_name(file.path(), 4096), ": no memory for decompression"), 0, 0, 0);
    }
  }
  ~GzipStream() override { inflateEnd(&state_); }

  std::size_t read(std::span<std::uint8_t> out) override {
    std::size_t done = 0;
    while (done < out.size() && !ended_) {
      if (state_.avail_in == 0) refill();
      const std::size_t room = std::min<std::size_t>(out.size() - done, std::size_t{1} << 30);
      state_.next_out = out.data() + done;
      state_.avail_out = static_cast<uInt>(room);
      const int result = inflate(&state_, Z_NO_FLUSH);
      done += room - state_.avail_out;
      if (result == Z_STREAM_END) {
        ended_ = true;
        if (file_offset() != size_) fail_at(file_.path(), file_offset(), "bytes follow the end of the gzip data");
      } else if (result != Z_OK && result != Z_BUF_ERROR) {
        fail_at(file_.path(), file_offset(),
                cat("damaged gzip data: ", state_.msg != nullptr ? state_.msg : zError(result)));
      }
    }
    return done;
  }
  std::uint64_t file_offset() const override { return input_end_ - state_.avail_in; }
  std::uint64_t max_bytes() const override {
    return size_ > (std::uint64_t{1} << 50) ? std::uint64_t{1} << 60 : size_ * kMaxExpansion;
  }
  bool is_compressed() const override { return true; }

 private:
  void refill() {
    const std::size_t got = file_.read_up_to(std::as_writable_bytes(std::span(input_)), input_end_);
    if (got == 0) fail_at(file_.path(), input_end_, "the gzip data stops before its end: the file was cut short");
    input_end_ += got;
    state_.next_in = input_.data();
    state_.avail_in = static_cast<uInt>(got);
  }

  const File& file_;
  std::uint64_t size_;
  std::vector<std::uint8_t> input_;
  std::uint64_t input_end_ = 0;
  z_stream state_{};
  bool ended_ = false;
};

File open_with_hint(const std::string& path, std::string_view missing_hint, FileSystem& files) {
  try {
    return File::open(path, OpenMode::read, files);
  } catch (const IoError& error) {
    if (error.code != ENOENT || missing_hint.empty()) throw;
    throw IoError(cat("open ", quote_name(path, 4096), ": ", errno_text(ENOENT), "; ", missing_hint), path, ENOENT);
  }
}

std::unique_ptr<ByteStream> open_stream(const File& file) {
  std::array<std::byte, 2> magic{};
  file.read_up_to(magic, 0);
  if (magic[0] == std::byte{0x1f} && magic[1] == std::byte{0x8b}) return std::make_unique<GzipStream>(file);
  return std::make_unique<PlainStream>(file);
}

std::vector<std::int64_t> read_shape(ByteStream& stream, const std::string& path, int expected_axes) {
  std::array<std::uint8_t, 4 + 4 * kMaxAxes> header{};
  const auto read = [&](std::span<std::uint8_t> out) {
    if (stream.read(out) < out.size()) fail_at(path, stream.file_offset(), "the file ends inside the header");
  };
  read(std::span(header).first(4));
  if (header[0] != 0 || header[1] != 0) {
    fail_at(path, 0, "expected an IDX file, which begins with two zero bytes, or a gzipped one");
  }
  if (header[2] != kUnsignedByte) {
    fail_at(path, stream.file_offset(), cat("expected elements of type 8 (unsigned bytes), got type ", int{header[2]}));
  }
  const int axes = header[3];
  if (axes < 1 || axes > kMaxAxes || (expected_axes != 0 && axes != expected_axes)) {
    fail_at(path, stream.file_offset(),
            cat("expected ", expected_axes != 0 ? cat(expected_axes) : cat("1 to ", kMaxAxes), " axes, got ", axes));
  }
  const auto sizes = std::span(header).subspan(4, 4 * static_cast<std::size_t>(axes));
  read(sizes);
  std::vector<std::int64_t> shape;
  for (std::size_t i = 0; i < sizes.size(); i += 4) {
    shape.push_back(std::int64_t{sizes[i]} << 24 | std::int64_t{sizes[i + 1]} << 16 | std::int64_t{sizes[i + 2]} << 8 |
                    std::int64_t{sizes[i + 3]});
  }
  return shape;
}

// Passes over `count` bytes; returns how many there were.
std::uint64_t skip(ByteStream& stream, std::uint64_t count) {
  std::array<std::uint8_t, kSkipBytes> buffer;
  std::uint64_t done = 0;
  while (done < count) {
    const std::size_t wanted = std::min<std::uint64_t>(buffer.size(), count - done);
    const std::size_t got = stream.read(std::span(buffer).first(wanted));
    done += got;
    if (got < wanted) break;
  }
  return done;
}

}  // namespace

IdxArray read_idx_file(const std::string& path, const IdxOptions& options, FileSystem& files) {
  const File file = open_with_hint(path, options.missing_hint, files);
  std::unique_ptr<ByteStream> stream = open_stream(file);
  IdxArray array;
  array.shape = read_shape(*stream, path, options.axes);
  const std::optional<std::uint64_t> bytes = bytes_of_shape(array.shape, DType::u8);
  if (!bytes || *bytes > options.max_bytes) {
    fail_at(path, stream->file_offset(),
            cat("the sizes ", shape_text(array.shape), " exceed the ", options.max_bytes, " bytes accepted here"));
  }
  if (*bytes > stream->max_bytes()) {
    fail_at(path, stream->file_offset(),
            cat("the sizes ", shape_text(array.shape), " need ", *bytes, " bytes, more than a file of ", file.size(),
                " bytes can hold: it was cut short, or it is damaged"));
  }
  const auto check_held = [&](std::uint64_t held) {
    if (held == *bytes) return;
    fail_at(path, stream->file_offset(),
            cat("the sizes ", shape_text(array.shape), " need ", *bytes, " bytes, the file has ", held));
  };
  if (stream->is_compressed()) {
    check_held(skip(*stream, *bytes));
    stream = open_stream(file);
    if (read_shape(*stream, path, options.axes) != array.shape) fail_at(path, 0, "the file changed while it was read");
  }
  array.values.resize(*bytes);
  check_held(stream->read(array.values));
  std::array<std::uint8_t, 1> beyond{};
  if (stream->read(beyond) != 0) {
    fail_at(path, stream->file_offset(),
            cat("expected the data to end after ", *bytes, " bytes, as the sizes ", shape_text(array.shape), " say"));
  }
  return array;
}

}  // namespace castor::formats
