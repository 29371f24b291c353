// The rank's side of the watch. Delicate: a thread that was itself held up must not take that for the store's silence.
#include "dist/watch.h"

#include <exception>

#include "dist/gate.h"
#include "dist/store_protocol.h"

namespace castor::dist {
namespace {
constexpr std::chrono::milliseconds kTick{100};
constexpr std::chrono::milliseconds kFarewell{1000};
}  // namespace

Watch::Watch(const std::string& host, std::uint16_t port, const JobSecret& secret, int rank, Health& health,
             const FlightRecorder& recorder, Clock::time_point deadline)
    : rank_(rank),
      store_(cat(host, ":", port)),
      health_(health),
      recorder_(recorder),
      connection_(connect_through_gate(host, port, secret, deadline)) {
  connection_.send(begin_frame(StoreMessage::kEnlist).add(static_cast<std::int32_t>(rank)).finish());
  health_.set_judge([this](const Failure& failure) { report(failure); });
  thread_ = std::thread([this] { run(); });
}

Watch::~Watch() {
  health_.set_judge(nullptr);
  closing_ = true;
  thread_.join();
  try {
    if (std::uncaught_exceptions() > 0 && !health_.failed()) {
      report({rank_, "", 0, false, cat("rank ", rank_, " ended with an error of its own; its log has more")});
    }
    connection_.send(begin_frame(StoreMessage::kLeave).finish());
    // Until the store has heard it: closing with its beats unread could take our last word back.
    const auto deadline = Clock::now() + kFarewell;
    while (true) {
      FrameReader frame = connection_.receive(deadline);
      if (frame.number<std::uint8_t>() != static_cast<std::uint8_t>(StoreMessage::kLeft)) continue;
      if (frame.number<std::int32_t>() == rank_) break;
    }
  } catch (const std::exception&) {
    // The store is gone: nobody is left to tell.
  }
}

void Watch::report(const Failure& failure) {
  try {
    const std::lock_guard lock(mutex_);
    connection_.send(frame_of_failure(StoreMessage::kReport, failure));
  } catch (const SocketError&) {
    // Health counts the report itself after a while.
  }
}

void report_to_store(const std::string& host, std::uint16_t port, const JobSecret& secret, const Failure& failure,
                     Clock::time_point deadline) {
  FrameSocket connection(connect_through_gate(host, port, secret, deadline));
  connection.send(frame_of_failure(StoreMessage::kReport, failure));
  // An answer to a later question means that the report was heard.
  connection.send(begin_frame(StoreMessage::kAdd).add(std::string_view("heard")).add(std::int64_t{0}).finish());
  connection.receive(deadline);
}

void Watch::handle(FrameReader& frame) {
  switch (static_cast<StoreMessage>(frame.number<std::uint8_t>())) {
    case StoreMessage::kFailed:
      return health_.settle(read_failure(frame));
    case StoreMessage::kLeft:
      return health_.set_left(frame.number<std::int32_t>());
    default:
      return;  // a sign of life
  }
}

void Watch::run() {
  Clock::time_point last_word = Clock::now();
  Clock::time_point last_turn = Clock::now();
  Clock::time_point next_beat = Clock::now();
  const auto lose = [&](const std::string& why) {
    health_.settle(
        {-1, "", 0, false,
         cat("rank ", rank_, " has lost the job's store at ", store_, " (", why,
             "): the process that holds it (rank 0 or the launcher) is dead or stopped, or the network is gone")});
  };
  while (!closing_) {
    Readiness wanted{};
    {
      const std::lock_guard lock(mutex_);
      wanted = connection_.wanted();
    }
    wait_ready({&wanted, 1}, Clock::now() + kTick);
    const auto pause = Clock::now() - last_turn;
    last_turn = Clock::now();
    if (pause > 5 * kTick) last_word += pause;
    try {
      while (true) {
        FrameReader frame;
        {
          const std::lock_guard lock(mutex_);
          connection_.flush();
          if (!connection_.try_receive(frame)) break;
        }
        last_word = Clock::now();
        handle(frame);
      }
      if (Clock::now() >= next_beat) {
        next_beat = Clock::now() + kBeatTime;
        const std::lock_guard lock(mutex_);
        connection_.send(begin_frame(StoreMessage::kBeat).add(recorder_.latest()).finish());
      }
    } catch (const SocketError& error) {
      return lose(error.what());
    }
    if (Clock::now() - last_word > kSilence) return lose(cat("no word for ", kSilence.count(), " ms"));
  }
}

}  // namespace castor::dist
