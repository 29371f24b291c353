// Buffers between frames and the stream of bytes below them.
#include "dist/wire.h"

#include <array>

#include "core/base/file.h"

namespace castor::dist {
namespace {
constexpr std::size_t kMaxUnsent = 2 * kMaxFrame;
}

bool FrameSocket::try_receive(FrameReader& frame) {
  std::uint32_t length = 0;
  while (true) {
    if (in_.size() >= sizeof(length)) {
      std::memcpy(&length, in_.data(), sizeof(length));
      if (length > kMaxFrame) throw SocketError(cat("a frame of ", length, " bytes; at most ", kMaxFrame, " are read"));
      if (in_.size() >= sizeof(length) + length) {
        frame = FrameReader(in_.substr(sizeof(length), length));
        in_.erase(0, sizeof(length) + length);
        return true;
      }
    }
    std::array<std::byte, 16384> chunk;
    const std::size_t count = socket_.try_read(chunk);
    if (count == 0) return false;
    in_.append(reinterpret_cast<const char*>(chunk.data()), count);
  }
}

FrameReader FrameSocket::receive(Clock::time_point deadline) {
  FrameReader frame;
  while (!try_receive(frame)) {
    if (Clock::now() >= deadline) throw SocketError(cat("no answer from ", socket_.peer(), " before the deadline"));
    const Readiness ready = wanted();
    wait_ready({&ready, 1}, deadline);
    flush();
  }
  return frame;
}

void FrameSocket::send(const std::string& frame) {
  if (frame.size() > kMaxFrame) throw SocketError(cat("a frame of ", frame.size(), " bytes is too large to send"));
  out_ += frame;
  flush();
  if (out_.size() > kMaxUnsent) throw SocketError(cat(socket_.peer(), " reads too slowly"));
}

void FrameSocket::flush() {
  std::size_t done = 0;
  while (done < out_.size()) {
    const std::size_t count = socket_.try_write(as_byte_span(std::string_view(out_).substr(done)));
    if (count == 0) break;
    done += count;
  }
  out_.erase(0, done);
}

}  // namespace castor::dist
