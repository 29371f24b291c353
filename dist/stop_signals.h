// The signals that end a launcher, taken in turns of its loop instead of by handlers.
//
// Delicate: they are blocked for the thread that makes this and for threads made after it; make it first, and let ranks
// start with an empty mask (dist/processes.cpp does).
#pragma once

#include <chrono>
#include <csignal>

#include <time.h>

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

  /// The next signal, or 0 if none comes for a turn of 20 ms.
  int wait_a_turn() {
    constexpr long kTurnNanoseconds = 20'000'000L;
    const timespec time{0, kTurnNanoseconds};
    const int number = sigtimedwait(&set_, nullptr, &time);
    return number > 0 ? number : 0;
  }

 private:
  sigset_t set_;
  sigset_t before_;
};

}  // namespace castor::dist
