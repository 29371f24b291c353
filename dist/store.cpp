// The client's side: one question, one answer.
#include "dist/store.h"

#include <algorithm>

#include "dist/gate.h"
#include "dist/store_protocol.h"

namespace castor::dist {
namespace {
constexpr std::chrono::milliseconds kAnswerTime{10'000};
constexpr std::chrono::milliseconds kTurn{200};  // how soon a failure of the job is noticed

[[noreturn]] void throw_unset(const std::string& key, std::chrono::milliseconds limit) {
  throw CommTimeout(cat("store: nobody has set '", key, "' within ", limit.count(),
                        " ms; have all ranks started, with the same world size?"),
                    -1, "store", 0);
}

}  // namespace

Store::Store(const std::string& host, std::uint16_t port, const JobSecret& secret, Clock::time_point deadline)
    : connection_(connect_through_gate(host, port, secret, deadline)) {}

FrameReader Store::ask(const std::string& frame, std::chrono::milliseconds limit) {
  connection_.send(frame);
  return connection_.receive(Clock::now() + limit + kAnswerTime);
}

void Store::set(const std::string& key, const std::string& value) {
  const std::lock_guard lock(mutex_);
  ask(begin_frame(StoreMessage::kSet).add(key).add(value).finish(), {});
}

std::string Store::wait(const std::string& key, std::chrono::milliseconds limit) {
  const std::lock_guard lock(mutex_);
  const auto milliseconds = static_cast<std::uint32_t>(limit.count());
  FrameReader answer = ask(begin_frame(StoreMessage::kWait).add(key).add(milliseconds).finish(), limit);
  if (answer.number<std::uint8_t>() == static_cast<std::uint8_t>(StoreMessage::kValue)) return answer.text();
  throw_unset(key, limit);
}

std::int64_t Store::add(const std::string& key, std::int64_t amount) {
  const std::lock_guard lock(mutex_);
  FrameReader answer = ask(begin_frame(StoreMessage::kAdd).add(key).add(amount).finish(), {});
  answer.number<std::uint8_t>();
  return answer.number<std::int64_t>();
}

std::string wait_for_key(Store& store, const Health& health, const std::string& key, std::chrono::milliseconds limit) {
  const auto deadline = Clock::now() + limit;
  while (true) {
    if (health.failed()) throw JobFailed();
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now());
    try {
      return store.wait(key, std::clamp(left, std::chrono::milliseconds(0), kTurn));
    } catch (const CommTimeout&) {
      if (left <= kTurn) throw_unset(key, limit);
    }
  }
}

}  // namespace castor::dist
