// A group that connects over TCP while one of its ranks is dead or silent: the job's failure ends each wait. What
// connected groups do is in job_test.cpp.
#include "dist/comm_tcp.h"

#include <functional>
#include <thread>

#include <doctest/doctest.h>

#include "core/base/error.h"
#include "dist/gate.h"

namespace {

using namespace castor;
using namespace castor::dist;
using namespace std::chrono_literals;

/// One rank of a group of two that connects, and the job's store; the other rank is played by the case.
struct Meeting {
  JobSecret secret = JobSecret::random();
  StoreServer server{"127.0.0.1", 0, secret};
  Store store{"127.0.0.1", server.port(), secret, Clock::now() + 10s};
  Health health;

  /// Checks that `rank` gives connecting up soon after the job has failed, and not before.
  ///   other  what the other rank does first, with the store
  void check_given_up(int rank, const std::function<void(Store&)>& other) {
    std::thread failing([&] {
      Store own("127.0.0.1", server.port(), secret, Clock::now() + 10s);
      other(own);
      std::this_thread::sleep_for(300ms);
      health.settle({1 - rank, "connect", 0, false, "the other rank is gone"});
    });
    const auto began = Clock::now();
    CHECK_THROWS_AS(connect_tcp(store, secret, health, "g", {0, 1}, rank, 30s), JobFailed);
    const auto took = Clock::now() - began;
    failing.join();
    CHECK(took >= 300ms);
    CHECK(took < 10s);
  }
};

}  // namespace

TEST_CASE("a rank that calls one whose port is closed stops when the job fails") {
  Meeting meeting;
  const std::uint16_t closed = Listener("127.0.0.1", 0).port();
  meeting.check_given_up(0, [&](Store& own) { own.set("tcp/g/1", cat("127.0.0.1 ", closed)); });
}

TEST_CASE("a rank that calls one which never answers stops when the job fails") {
  Meeting meeting;
  const Listener silent("127.0.0.1", 0);
  meeting.check_given_up(0, [&](Store& own) { own.set("tcp/g/1", cat("127.0.0.1 ", silent.port())); });
}

TEST_CASE("a rank that is called by one which never says who it is stops when the job fails") {
  Meeting meeting;
  std::optional<Socket> caller;
  meeting.check_given_up(1, [&](Store& own) {
    const std::string address = own.wait("tcp/g/1", 10s);
    caller = connect_through_gate("127.0.0.1", static_cast<std::uint16_t>(std::stoi(address.substr(address.find(' ')))),
                                  meeting.secret, Clock::now() + 10s);
  });
}
