// TCP connections (Boost.Asio's sockets, kept in socket.cpp) as the dist floor uses them: nothing blocks but waits, and
// every wait has a deadline and may be broken off. Delicate: descriptors are closed in child processes (CLOEXEC), and a
// write to a closed connection is an error here, never a signal.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/base/error.h"

namespace castor::dist {

using Clock = std::chrono::steady_clock;

/// Called a few times a second while something is waited for; what it throws ends the wait.
using Look = std::function<void()>;

/// The connection is closed or broken, or cannot be made.
class SocketError : public Error {
 public:
  using Error::Error;
};

/// One connection. Move-only; closed when it goes out of scope.
class Socket {
 public:
  struct Parts;
  explicit Socket(std::unique_ptr<Parts> parts);
  Socket(Socket&&) noexcept;
  Socket& operator=(Socket&&) noexcept;
  ~Socket();

  /// Connects, trying again until the deadline while the host has no address or nobody listens there yet. A host with
  /// several addresses is tried at each in turn.
  ///   host   a name or an address
  /// Throws SocketError.
  static Socket connect(const std::string& host, std::uint16_t port, Clock::time_point deadline, const Look& look = {});

  /// Reads or writes what is possible now; 0 means not now. Throw SocketError when the connection has ended.
  std::size_t try_read(std::span<std::byte> into);
  std::size_t try_write(std::span<const std::byte> bytes);
  /// All of it. Throw SocketError also at the deadline.
  void read_all(std::span<std::byte> into, Clock::time_point deadline, const Look& look = {});
  void write_all(std::span<const std::byte> bytes, Clock::time_point deadline, const Look& look = {});

  int descriptor() const;
  /// "127.0.0.1:4711", the other end; this end's address without the port.
  std::string peer() const;
  std::string local_address() const;

 private:
  std::unique_ptr<Parts> parts_;
};

/// A port that listens.
class Listener {
 public:
  /// Listens on `address` (a name or an address; "127.0.0.1" is reachable from this machine only). A name is waited for
  /// 10 s at most.
  ///   port   0 picks a free one
  /// Throws SocketError.
  Listener(const std::string& address, std::uint16_t port);
  Listener(Listener&&) noexcept;
  Listener& operator=(Listener&&) noexcept;
  ~Listener();

  std::uint16_t port() const;
  int descriptor() const;
  /// A connection that has come, if one has.
  std::optional<Socket> try_accept();

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

/// What to wait for on one descriptor, and what came true.
struct Readiness {
  int descriptor;
  bool read;
  bool write;
};
/// Sleeps until one of them is ready (or broken), at most until the deadline.
void wait_ready(std::span<const Readiness> wanted, Clock::time_point deadline);

}  // namespace castor::dist
