// Asio opens, resolves, reads and writes without blocking; poll(2) waits. Delicate: Asio's own blocking calls have no
// deadline, so none is used.
#include "dist/socket.h"

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <thread>
#include <utility>

#include <fcntl.h>
#include <poll.h>

namespace castor::dist {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using ErrorCode = boost::system::error_code;

constexpr std::chrono::milliseconds kRetry{50};

/// Sockets need one; it runs no handlers.
asio::io_context& context() {
  static asio::io_context shared;
  return shared;
}

bool not_now(const ErrorCode& error) {
  return error == asio::error::would_block || error == asio::error::try_again || error == asio::error::interrupted;
}

std::vector<tcp::endpoint> resolve(const std::string& host, std::uint16_t port) {
  ErrorCode error;
  const auto address = asio::ip::make_address(host, error);
  if (!error) return {tcp::endpoint(address, port)};
  tcp::resolver resolver(context());
  const auto found = resolver.resolve(host, std::to_string(port), error);
  if (error) throw SocketError(cat("cannot find host ", host, ": ", error.message()));
  std::vector<tcp::endpoint> endpoints;
  for (const auto& entry : found) endpoints.push_back(entry.endpoint());
  return endpoints;
}

/// Descriptors must not live on in processes that a rank starts.
void close_on_exec(int descriptor) { fcntl(descriptor, F_SETFD, fcntl(descriptor, F_GETFD) | FD_CLOEXEC); }

/// True when connected; false when nobody listens there now.
bool try_connect(tcp::socket& socket, const tcp::endpoint& endpoint, Clock::time_point deadline, ErrorCode& error) {
  socket.open(endpoint.protocol(), error);
  if (error) return false;
  close_on_exec(socket.native_handle());
  socket.native_non_blocking(true, error);
  if (::connect(socket.native_handle(), endpoint.data(), static_cast<socklen_t>(endpoint.size())) != 0) {
    if (errno != EINPROGRESS) {
      error = ErrorCode(errno, boost::system::system_category());
      return false;
    }
    const Readiness wanted{socket.native_handle(), false, true};
    wait_ready({&wanted, 1}, deadline);
    pollfd state{socket.native_handle(), POLLOUT, 0};
    if (poll(&state, 1, 0) == 0) {
      error = asio::error::timed_out;
      return false;
    }
    int code = 0;
    socklen_t size = sizeof(code);
    getsockopt(socket.native_handle(), SOL_SOCKET, SO_ERROR, &code, &size);
    if (code != 0) {
      error = ErrorCode(code, boost::system::system_category());
      return false;
    }
  }
  return true;
}

}  // namespace

struct Socket::Parts {
  tcp::socket socket{context()};
  std::string peer;

  void set_up() {
    ErrorCode ignored;
    socket.non_blocking(true, ignored);
    socket.set_option(tcp::no_delay(true), ignored);
    const auto end = socket.remote_endpoint(ignored);
    peer = cat(end.address().to_string(), ":", end.port());
  }
};

Socket::Socket(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Socket::Socket(Socket&&) noexcept = default;
Socket& Socket::operator=(Socket&&) noexcept = default;
Socket::~Socket() = default;

Socket Socket::connect(const std::string& host, std::uint16_t port, Clock::time_point deadline) {
  ErrorCode error;
  while (true) {
    for (const tcp::endpoint& endpoint : resolve(host, port)) {
      auto parts = std::make_unique<Parts>();
      if (try_connect(parts->socket, endpoint, deadline, error)) {
        parts->set_up();
        return Socket(std::move(parts));
      }
    }
    if (Clock::now() + kRetry >= deadline) {
      throw SocketError(cat("cannot connect to ", host, ":", port, ": ", error.message(),
                            "; is the process there running, and may this machine reach it?"));
    }
    std::this_thread::sleep_for(kRetry);
  }
}

std::size_t Socket::try_read(std::span<std::byte> into) {
  ErrorCode error;
  const std::size_t count = parts_->socket.read_some(asio::buffer(into.data(), into.size()), error);
  if (error && !not_now(error)) throw SocketError(cat("the connection with ", peer(), " ended: ", error.message()));
  return count;
}

std::size_t Socket::try_write(std::span<const std::byte> bytes) {
  ErrorCode error;
  const std::size_t count = parts_->socket.write_some(asio::buffer(bytes.data(), bytes.size()), error);
  if (error && !not_now(error)) throw SocketError(cat("the connection with ", peer(), " ended: ", error.message()));
  return count;
}

void Socket::read_all(std::span<std::byte> into, Clock::time_point deadline) {
  const Readiness wanted{descriptor(), true, false};
  while (!into.empty()) {
    into = into.subspan(try_read(into));
    if (into.empty()) return;
    if (Clock::now() >= deadline) throw SocketError(cat("no word from ", peer(), " before the deadline"));
    wait_ready({&wanted, 1}, deadline);
  }
}

void Socket::write_all(std::span<const std::byte> bytes, Clock::time_point deadline) {
  const Readiness wanted{descriptor(), false, true};
  while (!bytes.empty()) {
    bytes = bytes.subspan(try_write(bytes));
    if (bytes.empty()) return;
    if (Clock::now() >= deadline) throw SocketError(cat(peer(), " takes no bytes before the deadline"));
    wait_ready({&wanted, 1}, deadline);
  }
}

int Socket::descriptor() const { return parts_->socket.native_handle(); }

std::string Socket::peer() const { return parts_->peer; }

std::string Socket::local_address() const {
  ErrorCode error;
  return parts_->socket.local_endpoint(error).address().to_string();
}

struct Listener::Parts {
  tcp::acceptor acceptor{context()};
};

Listener::Listener(const std::string& address, std::uint16_t port) : parts_(std::make_unique<Parts>()) {
  const tcp::endpoint endpoint = resolve(address, port).at(0);
  tcp::acceptor& acceptor = parts_->acceptor;
  ErrorCode error;
  acceptor.open(endpoint.protocol(), error);
  if (!error) close_on_exec(acceptor.native_handle());
  if (!error) acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
  if (!error) acceptor.non_blocking(true, error);
  if (error) throw SocketError(cat("cannot listen on ", address, ":", port, ": ", error.message()));
}

Listener::Listener(Listener&&) noexcept = default;
Listener& Listener::operator=(Listener&&) noexcept = default;
Listener::~Listener() = default;

std::uint16_t Listener::port() const {
  ErrorCode error;
  return parts_->acceptor.local_endpoint(error).port();
}

int Listener::descriptor() const { return parts_->acceptor.native_handle(); }

std::optional<Socket> Listener::try_accept() {
  auto parts = std::make_unique<Socket::Parts>();
  ErrorCode error;
  parts_->acceptor.accept(parts->socket, error);
  if (error) return std::nullopt;
  close_on_exec(parts->socket.native_handle());
  parts->set_up();
  return Socket(std::move(parts));
}

void wait_ready(std::span<const Readiness> wanted, Clock::time_point deadline) {
  std::vector<pollfd> states;
  states.reserve(wanted.size());
  for (const Readiness& one : wanted) {
    const int events = (one.read ? POLLIN : 0) | (one.write ? POLLOUT : 0);
    states.push_back({one.descriptor, static_cast<short>(events), 0});
  }
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
  poll(states.data(), states.size(), static_cast<int>(std::clamp<std::int64_t>(left, 0, 3'600'000)));
}

}  // namespace castor::dist
