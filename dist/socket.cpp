// Asio opens, reads and writes without blocking; poll(2) waits. Delicate: Asio's own blocking calls have no deadline,
// so none is used. Neither has the system's resolver, for which there is no other way: it is asked on a thread of its
// own, which is left behind when it answers too late.
#include "dist/socket.h"

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <thread>
#include <utility>

#include <fcntl.h>
#include <netdb.h>
#include <poll.h>

#include "core/base/log.h"

namespace castor::dist {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using ErrorCode = boost::system::error_code;

constexpr std::chrono::milliseconds kTurn{200};  // how soon a wait is broken off
constexpr std::chrono::milliseconds kRetry{50};
constexpr std::chrono::milliseconds kAskAgain{500};  // name services are not to be flooded
constexpr std::chrono::seconds kTry{3};              // for one address, before the next one's turn
constexpr std::chrono::seconds kOwnName{10};

/// Sockets need one; it runs no handlers.
asio::io_context& context() {
  static asio::io_context shared;
  return shared;
}

bool not_now(const ErrorCode& error) {
  return error == asio::error::would_block || error == asio::error::try_again || error == asio::error::interrupted;
}

/// A question to the system's resolver and its answer.
struct Question {
  std::mutex mutex;
  std::condition_variable changed;
  bool is_answered = false;
  std::string error;
  std::vector<tcp::endpoint> endpoints;
};

/// Asks getaddrinfo, for as long as that takes.
void ask_resolver(Question& question, const std::string& host, std::uint16_t port) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int code = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
  const std::string reason = code == EAI_SYSTEM ? std::strerror(errno) : gai_strerror(code);
  const std::lock_guard lock(question.mutex);
  if (code != 0) question.error = cat("cannot find host ", host, ": ", reason);
  for (const addrinfo* entry = code == 0 ? found : nullptr; entry != nullptr; entry = entry->ai_next) {
    if (entry->ai_family != AF_INET && entry->ai_family != AF_INET6) continue;
    tcp::endpoint endpoint;
    std::memcpy(endpoint.data(), entry->ai_addr, entry->ai_addrlen);
    endpoint.resize(entry->ai_addrlen);
    question.endpoints.push_back(endpoint);
  }
  if (code == 0) freeaddrinfo(found);
  question.is_answered = true;
  question.changed.notify_all();
}

/// Where a host is; nothing, and the reason in `error`, if it has no address now. Throws SocketError if that cannot be
/// found out before the deadline.
std::vector<tcp::endpoint> resolve(const std::string& host, std::uint16_t port, Clock::time_point deadline,
                                   const Look& look, std::string& error) {
  ErrorCode not_an_address;
  const auto address = asio::ip::make_address(host, not_an_address);
  if (!not_an_address) return {tcp::endpoint(address, port)};
  const auto question = std::make_shared<Question>();
  std::thread([question, host, port] { ask_resolver(*question, host, port); }).detach();
  std::unique_lock lock(question->mutex);
  while (!question->is_answered) {
    if (Clock::now() >= deadline) {
      throw SocketError(cat("cannot find host ", host,
                            ": this machine's name service does not answer; check it (getent ", "hosts ", host,
                            "), or give an address instead of a name"));
    }
    question->changed.wait_until(lock, std::min(deadline, Clock::now() + kTurn));
    if (look) look();
  }
  error = question->error;
  return std::move(question->endpoints);
}

/// Waits until it is ready, but for a turn at most.
void wait_a_turn(const Readiness& wanted, Clock::time_point deadline, const Look& look) {
  if (look) look();
  wait_ready({&wanted, 1}, std::min(deadline, Clock::now() + kTurn));
}

/// Sleeps between tries.
void pause(std::chrono::milliseconds time, Clock::time_point deadline, const Look& look) {
  if (look) look();
  std::this_thread::sleep_until(std::min(deadline, Clock::now() + time));
}

/// Descriptors must not live on in processes that a rank starts.
void close_on_exec(int descriptor) { fcntl(descriptor, F_SETFD, fcntl(descriptor, F_GETFD) | FD_CLOEXEC); }

bool is_decided(int descriptor) {
  pollfd state{descriptor, POLLOUT, 0};
  return poll(&state, 1, 0) > 0;
}

/// True when connected; false when nobody listens there now.
bool try_connect(tcp::socket& socket, const tcp::endpoint& endpoint, Clock::time_point deadline, const Look& look,
                 ErrorCode& error) {
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
    while (!is_decided(wanted.descriptor)) {
      if (Clock::now() >= deadline) {
        error = asio::error::timed_out;
        return false;
      }
      wait_a_turn(wanted, deadline, look);
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

Socket Socket::connect(const std::string& host, std::uint16_t port, Clock::time_point deadline, const Look& look) {
  for (bool is_first = true;; is_first = false) {
    std::string why;
    const std::vector<tcp::endpoint> endpoints = resolve(host, port, deadline, look, why);
    for (std::size_t i = 0; i < endpoints.size(); ++i) {
      // None may use up the time of those behind it.
      const Clock::duration share = (deadline - Clock::now()) / static_cast<std::int64_t>(endpoints.size() - i);
      const auto until = Clock::now() + std::min<Clock::duration>(kTry, share);
      auto parts = std::make_unique<Parts>();
      ErrorCode error;
      if (try_connect(parts->socket, endpoints[i], until, look, error)) {
        parts->set_up();
        return Socket(std::move(parts));
      }
      why = cat("cannot connect to ", host, ":", port, ": ", error.message(),
                "; is the process there running, and may this machine reach it?");
    }
    const auto wait = endpoints.empty() ? kAskAgain : kRetry;
    if (Clock::now() + wait >= deadline) throw SocketError(why);
    if (endpoints.empty() && is_first) logger().warning(why, "; trying again, since it may still be starting");
    pause(wait, deadline, look);
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

void Socket::read_all(std::span<std::byte> into, Clock::time_point deadline, const Look& look) {
  const Readiness wanted{descriptor(), true, false};
  while (!into.empty()) {
    into = into.subspan(try_read(into));
    if (into.empty()) return;
    if (Clock::now() >= deadline) throw SocketError(cat("no word from ", peer(), " before the deadline"));
    wait_a_turn(wanted, deadline, look);
  }
}

void Socket::write_all(std::span<const std::byte> bytes, Clock::time_point deadline, const Look& look) {
  const Readiness wanted{descriptor(), false, true};
  while (!bytes.empty()) {
    bytes = bytes.subspan(try_write(bytes));
    if (bytes.empty()) return;
    if (Clock::now() >= deadline) throw SocketError(cat(peer(), " takes no bytes before the deadline"));
    wait_a_turn(wanted, deadline, look);
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
  std::string why;
  const std::vector<tcp::endpoint> endpoints = resolve(address, port, Clock::now() + kOwnName, {}, why);
  if (endpoints.empty()) throw SocketError(why);
  const tcp::endpoint& endpoint = endpoints[0];
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
