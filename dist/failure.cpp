// The first failure wins. Delicate: a judge may need the network and the network may be what failed, so a report waits
// for the verdict a bounded time and then counts itself.
#include "dist/failure.h"

namespace castor::dist {
namespace {
constexpr std::chrono::seconds kVerdictTime{1};
}

void throw_failure(const Failure& failure, const std::string& seen_in) {
  const std::string text = seen_in.empty() ? failure.text : cat(failure.text, "; seen by this rank in ", seen_in);
  if (failure.late) throw CommTimeout(text, failure.rank, failure.op, failure.sequence);
  throw CommError(text, failure.rank, failure.op, failure.sequence);
}

Failure Health::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

void Health::settle(const Failure& failure) {
  std::function<void(const Failure&)> listener;
  {
    const std::lock_guard lock(mutex_);
    if (failed_.load(std::memory_order_relaxed)) return;
    failure_ = failure;
    failed_.store(true, std::memory_order_release);
    listener = listener_;
  }
  settled_.notify_all();
  if (listener) listener(failure);
}

Failure Health::report(const Failure& failure) {
  if (!failed()) {
    bool judged = false;
    {
      const std::lock_guard lock(judge_mutex_);
      judged = judge_ != nullptr;
      if (judged) judge_(failure);
    }
    if (judged) {
      std::unique_lock lock(mutex_);
      settled_.wait_for(lock, kVerdictTime, [&] { return failed_.load(std::memory_order_relaxed); });
    }
    settle(failure);
  }
  return this->failure();
}

void Health::set_left(int rank) {
  const std::lock_guard lock(mutex_);
  left_.insert(rank);
}

bool Health::has_left(int rank) const {
  const std::lock_guard lock(mutex_);
  return left_.contains(rank);
}

void Health::set_judge(std::function<void(const Failure&)> judge) {
  const std::lock_guard lock(judge_mutex_);
  judge_ = std::move(judge);
}

void Health::set_listener(std::function<void(const Failure&)> listener) {
  const std::lock_guard lock(mutex_);
  listener_ = std::move(listener);
}

}  // namespace castor::dist
