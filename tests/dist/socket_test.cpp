// Names of hosts and their addresses: a name that is not known yet, one that the resolver is silent about, and one
// whose first address is dead.
//
// Delicate: this program's getaddrinfo answers for names that end in ".castor-test" and hands all others on.
#include "dist/socket.h"

#include <atomic>
#include <cstring>
#include <mutex>
#include <thread>

#include <arpa/inet.h>
#include <dlfcn.h>
#include <doctest/doctest.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core/base/error.h"
#include "tests/support/log_capture.h"

namespace {

using namespace castor;
using namespace castor::dist;
using namespace std::chrono_literals;

std::atomic<int> unknown_for{0};  // how often "late" is not known yet
std::atomic<bool> is_silent{false};

using Resolve = int (*)(const char*, const char*, const addrinfo*, addrinfo**);

/// A socket that listens on an address of this machine and lets nobody in: its queue is full.
class DeadAddress {
 public:
  DeadAddress(const char* address, std::uint16_t port) : listener_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in place{};
    place.sin_family = AF_INET;
    place.sin_port = htons(port);
    inet_pton(AF_INET, address, &place.sin_addr);
    is_bound_ = bind(listener_, reinterpret_cast<const sockaddr*>(&place), sizeof(place)) == 0;
    listen(listener_, 0);
    for (int& visitor : visitors_) {
      visitor = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
      connect(visitor, reinterpret_cast<const sockaddr*>(&place), sizeof(place));
    }
  }
  DeadAddress(const DeadAddress&) = delete;
  DeadAddress& operator=(const DeadAddress&) = delete;
  ~DeadAddress() {
    for (const int visitor : visitors_) close(visitor);
    close(listener_);
  }
  bool is_bound() const { return is_bound_; }

 private:
  int listener_;
  bool is_bound_ = false;
  std::array<int, 4> visitors_{};
};

}  // namespace

extern "C" int getaddrinfo(const char* host, const char* service, const addrinfo* hints, addrinfo** found) {
  static const auto system = reinterpret_cast<Resolve>(dlsym(RTLD_NEXT, "getaddrinfo"));
  const std::string name = host == nullptr ? "" : host;
  if (!name.ends_with(".castor-test")) return system(host, service, hints, found);
  if (name == "silent.castor-test") {
    while (is_silent) std::this_thread::sleep_for(5ms);
    return EAI_AGAIN;
  }
  if (name == "late.castor-test" && unknown_for-- > 0) return EAI_NONAME;
  if (name != "two.castor-test") return system("127.0.0.1", service, hints, found);
  const int code = system("127.0.0.2", service, hints, found);
  if (code != 0) return code;
  addrinfo* last = *found;
  while (last->ai_next != nullptr) last = last->ai_next;
  return system("127.0.0.1", service, hints, &last->ai_next);
}

TEST_CASE("a host whose name is not known yet is looked for until the deadline") {
  const test::LogCapture log;
  const Listener listener("127.0.0.1", 0);
  unknown_for = 2;
  const Socket socket = Socket::connect("late.castor-test", listener.port(), Clock::now() + 20s);
  CHECK(socket.peer() == cat("127.0.0.1:", listener.port()));
  CHECK(log.text().find("WARNING - cannot find host late.castor-test: ") != std::string::npos);
  unknown_for = 1 << 20;
  CHECK_THROWS_WITH_AS(Socket::connect("late.castor-test", listener.port(), Clock::now() + 700ms),
                       doctest::Contains("cannot find host late.castor-test: "), SocketError);
}

TEST_CASE("a name service that does not answer holds nobody up beyond the deadline, nor when the wait is broken off") {
  is_silent = true;
  auto began = Clock::now();
  CHECK_THROWS_WITH_AS(Socket::connect("silent.castor-test", 1, began + 300ms), doctest::Contains("does not answer"),
                       SocketError);
  CHECK(Clock::now() - began < 10s);
  began = Clock::now();
  const Look look = [&] {
    if (Clock::now() - began > 300ms) throw std::out_of_range("enough");
  };
  CHECK_THROWS_AS(Socket::connect("silent.castor-test", 1, began + 30s, look), std::out_of_range);
  CHECK(Clock::now() - began < 10s);
  is_silent = false;
}

TEST_CASE("a host whose first address is dead is reached at its second") {
  const Listener listener("127.0.0.1", 0);
  const DeadAddress dead("127.0.0.2", listener.port());
  REQUIRE(dead.is_bound());
  CHECK_THROWS_WITH_AS(Socket::connect("127.0.0.2", listener.port(), Clock::now() + 200ms),
                       doctest::Contains("cannot connect to 127.0.0.2"), SocketError);
  // Little time is shared out, and of much each address gets some seconds.
  for (const auto limit : {1'000ms, 30'000ms}) {
    const auto began = Clock::now();
    const Socket socket = Socket::connect("two.castor-test", listener.port(), began + limit);
    CHECK(socket.peer() == cat("127.0.0.1:", listener.port()));
    CHECK(Clock::now() - began < 15s);
  }
}
