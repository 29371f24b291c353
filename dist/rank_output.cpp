// Pipes and lines. Delicate: a process that a rank left behind may hold a pipe open for ever, so at the end no more is
// read than a pipe can hold.
#include "dist/rank_output.h"

#include <array>
#include <cerrno>

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/log.h"

namespace castor::dist {
namespace {

constexpr int kTurnMs = 20;
constexpr std::size_t kPiece = std::size_t{64} << 10;  // read at once; what a pipe holds
constexpr std::size_t kLongestLine = std::size_t{256} << 10;

void write_out(int target, std::string_view text) {
  while (!text.empty()) {
    const ssize_t count = write(target, text.data(), text.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return;  // nobody reads any more; the ranks go on
    text.remove_prefix(static_cast<std::size_t>(count));
  }
}

}  // namespace

RankOutput::RankOutput(std::string log_folder, FileSystem& files)
    : folder_(std::move(log_folder)), files_(files), thread_([this] { run(); }) {}

RankOutput::~RankOutput() {
  closing_ = true;
  thread_.join();
  for (Stream& stream : streams_) finish(stream);
}

ProcessOutput RankOutput::open(int rank) {
  if (folder_.empty() && rank == 0) return {};
  Stream out;
  Stream err;
  if (folder_.empty()) {
    out.target = STDOUT_FILENO;
    err.target = STDERR_FILENO;
    out.prefix = err.prefix = cat("[rank", rank, "]: ");
  } else {
    const std::string folder = join_path(folder_, cat(rank));
    make_directories(folder, files_);
    const auto open_file = [&](Stream& stream, const char* name) {
      const std::string path = join_path(folder, name);
      const int error = files_.open(path, OpenMode::create, stream.file);
      if (error != 0) throw IoError(cat("cannot open the log ", path), path, error);
    };
    open_file(out, "stdout.log");
    open_file(err, "stderr.log");
  }
  ProcessOutput output;
  output.out = add(std::move(out));
  output.err = add(std::move(err));
  return output;
}

void RankOutput::started(const ProcessOutput& output) {
  if (output.out >= 0) close(output.out);
  if (output.err >= 0) close(output.err);
}

int RankOutput::add(Stream stream) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) throw IoError("no pipe is to be had for a rank's output", "", errno);
  fcntl(ends[0], F_SETFL, O_NONBLOCK);
  stream.pipe = ends[0];
  const std::lock_guard lock(mutex_);
  streams_.push_back(std::move(stream));
  return ends[1];
}

void RankOutput::run() {
  while (true) {
    const bool last = closing_;
    std::vector<pollfd> wanted;
    {
      const std::lock_guard lock(mutex_);
      for (Stream& stream : streams_) {
        if (stream.pipe < 0) continue;
        if (!pass(stream)) finish(stream);
        if (stream.pipe >= 0) wanted.push_back({stream.pipe, POLLIN, 0});
      }
    }
    if (last) return;
    poll(wanted.data(), wanted.size(), kTurnMs);
  }
}

bool RankOutput::pass(Stream& stream) {
  std::array<char, kPiece> piece;
  const ssize_t count = read(stream.pipe, piece.data(), piece.size());
  if (count < 0) return errno == EAGAIN || errno == EINTR;
  if (count == 0) return false;
  std::string_view text(piece.data(), static_cast<std::size_t>(count));
  if (stream.file) {
    while (!text.empty()) {
      const IoResult result = stream.file->write(as_byte_span(text), stream.written);
      if (result.error != 0) {
        logger().error("a rank's log cannot be written (error ", result.error, "); the rest of it is dropped");
        stream.file.reset();
        break;
      }
      stream.written += result.value;
      text.remove_prefix(static_cast<std::size_t>(result.value));
    }
    return true;
  }
  if (stream.target < 0) return true;  // a log that could not be written
  stream.line.append(text);
  const std::size_t end = stream.line.rfind('\n');
  if (end == std::string::npos && stream.line.size() < kLongestLine) return true;
  std::string whole = stream.line.substr(0, end == std::string::npos ? end : end + 1);
  stream.line.erase(0, whole.size());
  if (whole.back() != '\n') whole += '\n';
  std::string marked;
  for (std::size_t at = 0; at < whole.size();) {
    const std::size_t next = whole.find('\n', at) + 1;
    marked.append(stream.prefix).append(whole, at, next - at);
    at = next;
  }
  write_out(stream.target, marked);
  return true;
}

void RankOutput::finish(Stream& stream) {
  if (stream.pipe < 0) return;
  close(stream.pipe);
  stream.pipe = -1;
  if (!stream.line.empty()) write_out(stream.target, cat(stream.prefix, stream.line, "\n"));
  stream.line.clear();
  stream.file.reset();
}

}  // namespace castor::dist
