// The signals that end a launcher, taken in turns of its loop instead of by handlers.
//
// Delicate: they are blocked for the thread that makes this and for threads made after it; make it first, and let ranks
// start with an empty mask (dist/processes.cpp does).
#pragma once

#include <chrono>
#include <csignal>

#include <time.h>

#include "core/base/interrupt.h"

namespace castor::dist {

/// Takes SIGINT, SIGTERM and SIGHUP for as long as it lives; the thread that makes it asks for them.
class StopSignals {
 public:
  StopSignals() {
    sigemptyset(&set_);
    for (const int number : {SIGINT, SIGTERM, SIGHUP}) sigaddset(&set_, number);
    pthread_sigmask(SIG_BLOCK, &set_, &before_);
  }
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;
  ~StopSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

  /// The next signal that is a stop of its own, or 0 if none comes for a turn of 20 ms.
  int wait_a_turn() {
    constexpr long kTurnNanoseconds = 20'000'000L;
    const timespec time{0, kTurnNanoseconds};
    const int number = sigtimedwait(&set_, nullptr, &time);
    if (number <= 0) return 0;
    // Longer than the ranks wait, so that they take what is passed on for the second stop that it is.
    const auto now = std::chrono::steady_clock::now();
    if (last_ != std::chrono::steady_clock::time_point{} && now - last_ < 2 * kOneStop) return 0;
    last_ = now;
    return number;
  }

 private:
  sigset_t set_;
  sigset_t before_;
  std::chrono::steady_clock::time_point last_{};
};

}  // namespace castor::dist
