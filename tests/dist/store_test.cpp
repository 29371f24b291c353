// The store: keys, waits, numbers; who is let in; and that garbage at the port changes nothing.
#include "dist/store.h"

#include <cstring>
#include <random>
#include <thread>

#include <doctest/doctest.h>

#include "core/base/file.h"
#include "core/base/log.h"
#include "dist/gate.h"
#include "dist/watch.h"
#include "tests/support/long_run.h"

namespace {

using namespace castor;
using namespace castor::dist;
using namespace std::chrono_literals;

Clock::time_point soon() { return Clock::now() + 10s; }

/// Keeps expected warnings out of the test's output. The store's thread writes to the process's logger.
struct QuietProcess {
  QuietProcess() {
    LogOptions options;
    options.use_console = false;
    set_process_logger(std::make_shared<Logger>(options));
  }
  ~QuietProcess() { set_process_logger(nullptr); }
};

/// What the gate says before anything else; the connection as a stranger has it.
Socket stranger(std::uint16_t port) {
  Socket socket = Socket::connect("127.0.0.1", port, soon());
  std::array<std::byte, 40> hello;
  socket.read_all(hello, soon());
  return socket;
}

template <class F>
bool within(std::chrono::milliseconds limit, F&& came) {
  const auto deadline = Clock::now() + limit;
  while (!came()) {
    if (Clock::now() > deadline) return false;
    std::this_thread::sleep_for(5ms);
  }
  return true;
}

}  // namespace

TEST_CASE("the store keeps values, adds numbers, and wakes who waits for a key") {
  const JobSecret secret = JobSecret::random();
  const StoreServer server("127.0.0.1", 0, secret);
  Store a("127.0.0.1", server.port(), secret, soon());
  Store b("localhost", server.port(), secret, soon());
  a.set("name", "one");
  CHECK(b.wait("name", 0ms) == "one");
  a.set("name", "");
  CHECK(b.wait("name", 0ms).empty());
  CHECK(a.add("count", 2) == 2);
  CHECK(b.add("count", 40) == 42);
  std::thread later([&] {
    std::this_thread::sleep_for(20ms);
    a.set("late", "came");
  });
  CHECK(b.wait("late", 10s) == "came");
  later.join();
  CHECK_THROWS_WITH_AS(b.wait("never", 10ms),
                       "store: nobody has set 'never' within 10 ms; have all ranks started, with the same world size?",
                       CommTimeout);
  CHECK(a.wait("name", 0ms).empty());
}

TEST_CASE("the store bounds what it takes, and a client that breaks the bound is dropped alone") {
  const QuietProcess quiet;
  const JobSecret secret = JobSecret::random();
  const StoreServer server("127.0.0.1", 0, secret);
  Store good("127.0.0.1", server.port(), secret, soon());
  Store bad("127.0.0.1", server.port(), secret, soon());
  CHECK_THROWS_AS(bad.set("large", std::string(2'000'000, 'x')), SocketError);
  good.set("still", "here");
  CHECK(good.wait("still", 0ms) == "here");
  CHECK_THROWS_AS(good.wait("large", 0ms), CommTimeout);
}

TEST_CASE("who does not know the secret is refused on both sides") {
  const QuietProcess quiet;
  const JobSecret secret = JobSecret::random();
  const StoreServer server("127.0.0.1", 0, secret);
  CHECK_THROWS_AS(Store("127.0.0.1", server.port(), JobSecret("a guess"), soon()), SocketError);
  CHECK(within(5s, [&] { return server.refused() == 1; }));
  // A port that answers nonsense is not taken for a store.
  Listener other("127.0.0.1", 0);
  std::thread answer([&] {
    std::optional<Socket> visitor;
    within(5s, [&] { return (visitor = other.try_accept()).has_value(); });
    visitor->write_all(as_byte_span("HTTP/1.1 400 Bad Request, and so on until forty bytes are full"), soon());
  });
  CHECK_THROWS_WITH_AS(Store("127.0.0.1", other.port(), secret, soon()),
                       doctest::Contains("is not a port of a Castor job"), SocketError);
  answer.join();
}

TEST_CASE("random frames at the port are dropped and change nothing") {
  const QuietProcess quiet;
  const JobSecret secret = JobSecret::random();
  const StoreServer server("127.0.0.1", 0, secret);
  Store store("127.0.0.1", server.port(), secret, soon());
  store.set("key", "value");
  std::mt19937 random(1);
  const int connections = test::long_run() ? 1'000'000 : 1'000;
  for (int i = 0; i < connections; ++i) {
    Socket socket = stranger(server.port());
    std::string garbage(1 + random() % 200, '\0');
    for (char& c : garbage) c = static_cast<char>(random());
    // Half of them look like a frame: a length that may be true, and a kind that exists.
    if (i % 2 == 0 && garbage.size() > sizeof(std::uint32_t)) {
      const auto length = static_cast<std::uint32_t>(garbage.size() - sizeof(std::uint32_t) + random() % 2);
      std::memcpy(garbage.data(), &length, sizeof(length));
      garbage[sizeof(length)] = static_cast<char>(random() % 13);
    }
    try {
      socket.write_all(as_byte_span(garbage), soon());
    } catch (const SocketError&) {
      // Dropped while it was still talking.
    }
  }
  CHECK(within(20s, [&] { return server.refused() == static_cast<std::uint64_t>(connections); }));
  CHECK(store.wait("key", 0ms) == "value");
}

TEST_CASE("silent strangers do not keep others out") {
  const QuietProcess quiet;
  const JobSecret secret = JobSecret::random();
  const StoreServer server("127.0.0.1", 0, secret);
  std::vector<Socket> strangers;
  for (int i = 0; i < 150; ++i) strangers.push_back(stranger(server.port()));
  Store store("127.0.0.1", server.port(), secret, soon());
  store.set("key", "value");
  CHECK(store.wait("key", 0ms) == "value");
  CHECK(within(10s, [&] { return server.refused() >= 150 - 128; }));
}

TEST_CASE("the watch tells all ranks the first failure, who left, and who fell silent") {
  const QuietProcess quiet;
  const JobSecret secret = JobSecret::random();
  auto server = std::make_unique<StoreServer>("127.0.0.1", 0, secret);
  std::vector<Health> health(4);
  std::vector<FlightRecorder> records(4);
  std::vector<std::unique_ptr<Watch>> watches;
  for (int rank = 0; rank < 4; ++rank) {
    const auto at = static_cast<std::size_t>(rank);
    watches.push_back(
        std::make_unique<Watch>("127.0.0.1", server->port(), secret, rank, health[at], records[at], soon()));
  }
  watches[3].reset();
  CHECK(within(5s, [&] { return health[0].has_left(3) && health[2].has_left(3); }));
  CHECK_FALSE(health[0].failed());

  SUBCASE("a report reaches everyone and wins over later ones") {
    const Failure counts = health[1].report({2, "barrier", 7, true, "rank 2 did not come"});
    CHECK(counts.text == "rank 2 did not come");
    CHECK(health[0].report({1, "other", 0, false, "a consequence"}).text == counts.text);
    CHECK(within(5s, [&] { return health[2].failed(); }));
    CHECK(health[2].failure().sequence == 7);
    CHECK(health[2].failure().late);
  }
  SUBCASE("a store that ends is noticed by all") {
    server.reset();
    CHECK(within(5s, [&] { return health[0].failed() && health[1].failed() && health[2].failed(); }));
    CHECK(health[1].failure().text.find("rank 1 has lost the job's store") != std::string::npos);
  }
  SUBCASE("a rank whose connection ends without a word is dead, one that says nothing is stopped") {
    const auto enlist = [&](int rank) {
      FrameSocket connection(connect_through_gate("127.0.0.1", server->port(), secret, soon()));
      FrameWriter frame;
      frame.add(std::uint8_t{7}).add(static_cast<std::int32_t>(rank));
      connection.send(frame.finish());
      return connection;
    };
    SUBCASE("dead") {
      { const FrameSocket dies = enlist(8); }
      CHECK(within(5s, [&] { return health[0].failed() && health[1].failed() && health[2].failed(); }));
      CHECK(health[2].failure().rank == 8);
      CHECK(health[2].failure().text.find("rank 8 is dead") != std::string::npos);
    }
    SUBCASE("stopped") {
      const FrameSocket silent = enlist(9);
      CHECK(within(5s, [&] { return health[0].failed() && health[1].failed() && health[2].failed(); }));
      CHECK(health[1].failure().rank == 9);
      CHECK(health[1].failure().text.find("rank 9 has given no sign of life") != std::string::npos);
    }
  }
}
