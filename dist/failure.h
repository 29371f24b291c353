// What went wrong in a job, once for all its ranks: the first failure that anyone reports ends every wait of everyone.
//
// Delicate: one death causes many symptoms (closed connections, late ranks). Only the first report counts, so that all
// ranks name the same cause; where a watch connects processes (dist/watch.h), the order is decided in one place.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <set>
#include <string>

#include "core/base/error.h"

namespace castor::dist {

/// Why a job cannot go on.
struct Failure {
  int rank = -1;               ///< the job's rank at fault, -1 if unknown
  std::string op;              ///< collective in which it was noticed, e.g. "all_reduce"; empty outside of any
  std::uint64_t sequence = 0;  ///< its number in its group
  bool late = false;           ///< a deadline passed: CommTimeout, not CommError
  std::string text;            ///< the whole story
};

/// The job failed on another rank while this one waited; Health knows why.
class JobFailed : public Error {
 public:
  JobFailed() : Error("the job failed on another rank") {}
};

/// Throws CommTimeout or CommError.
///   seen_in  what this rank was doing, added to the text; empty for the rank that found the failure
[[noreturn]] void throw_failure(const Failure& failure, const std::string& seen_in = {});

/// The state of the job as one rank sees it; shared by all its groups, and by all ranks that are threads of a process.
class Health {
 public:
  /// Cheap enough for every turn of a waiting loop.
  bool failed() const noexcept { return failed_.load(std::memory_order_acquire); }
  /// The first failure. Only after failed().
  Failure failure() const;
  /// Says that the job has failed. If someone else decides which report was first, waits up to a second for the
  /// verdict. Returns the failure that counts.
  Failure report(const Failure& failure);
  /// Makes `failure` the one that counts, unless there is one already.
  void settle(const Failure& failure);

  /// Notes a rank that ended well; who still waits for it waits in vain.
  void set_left(int rank);
  bool has_left(int rank) const;

  /// Hands reports to `judge`, which calls `settle` with what it decides, soon and from any thread; null to end that.
  void set_judge(std::function<void(const Failure&)> judge);
  /// Calls `listener` once at the failure, on the thread that settles it.
  void set_listener(std::function<void(const Failure&)> listener);

 private:
  std::atomic<bool> failed_{false};
  mutable std::mutex mutex_;
  std::condition_variable settled_;
  Failure failure_;
  std::set<int> left_;
  std::mutex judge_mutex_;
  std::function<void(const Failure&)> judge_;
  std::function<void(const Failure&)> listener_;
};

}  // namespace castor::dist
