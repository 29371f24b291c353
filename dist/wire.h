// Frames and their fields, as the store and its clients exchange them: a length, then so many bytes.
// Delicate: lengths come from outside; a frame beyond its bound ends the connection before memory is taken for it.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>

#include "dist/socket.h"

namespace castor::dist {

/// The largest frame that is read.
inline constexpr std::size_t kMaxFrame = std::size_t{4} << 20;

/// Builds a frame's bytes: add fields, then take `finish()`.
class FrameWriter {
 public:
  template <class T>
  requires std::is_arithmetic_v<T> FrameWriter& add(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof(value));
    return *this;
  }
  FrameWriter& add(std::string_view text) {
    add(static_cast<std::uint32_t>(text.size()));
    bytes_.append(text);
    return *this;
  }
  /// The length and the fields.
  std::string finish() const {
    FrameWriter framed;
    framed.add(static_cast<std::uint32_t>(bytes_.size()));
    return framed.bytes_ + bytes_;
  }

 private:
  std::string bytes_;
};

/// Reads the fields of one frame. Throws SocketError where it ends too early.
class FrameReader {
 public:
  explicit FrameReader(std::string bytes = {}) : bytes_(std::move(bytes)) {}
  template <class T>
  T number() {
    T value;
    std::memcpy(&value, take(sizeof(T)).data(), sizeof(T));
    return value;
  }
  std::string text() { return std::string(take(number<std::uint32_t>())); }

 private:
  std::string_view take(std::size_t count) {
    if (count > bytes_.size() - at_) throw SocketError("a frame ends in the middle of a field");
    at_ += count;
    return std::string_view(bytes_).substr(at_ - count, count);
  }
  std::string bytes_;
  std::size_t at_ = 0;
};

/// A connection that speaks frames, without blocking.
class FrameSocket {
 public:
  explicit FrameSocket(Socket socket) : socket_(std::move(socket)) {}
  /// Takes the next whole frame, if it has come. Throws SocketError when the connection ends or a frame is too large.
  bool try_receive(FrameReader& frame);
  /// Waits for the next frame until the deadline, at which it throws SocketError.
  FrameReader receive(Clock::time_point deadline);
  /// Queues a finished frame and writes what is possible. Throws SocketError if the other side reads too slowly.
  void send(const std::string& frame);
  /// Writes what is queued as far as possible.
  void flush();
  bool has_unsent() const { return !out_.empty(); }
  const Socket& socket() const { return socket_; }
  Readiness wanted() const { return {socket_.descriptor(), true, has_unsent()}; }

 private:
  Socket socket_;
  std::string in_;
  std::string out_;
};

}  // namespace castor::dist
