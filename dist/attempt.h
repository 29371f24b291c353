// One attempt of a job on one machine: starts its ranks, waits for their end, and ends all when one fails.
//
// Delicate: what differs between attempts (who takes part, where they meet, their secret) is in AttemptPlace, so that a
// straggler of the last attempt cannot join the next.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "dist/processes.h"
#include "dist/run_job.h"
#include "dist/stop_signals.h"
#include "dist/store.h"

namespace castor::dist {

/// Where the ranks of one attempt stand and meet.
struct AttemptPlace {
  int number = 0;      ///< of the attempt, from 0
  int nodes = 1;       ///< machines that take part
  int group_rank = 0;  ///< this machine's place among them
  int processes = 1;   ///< ranks on each machine
  std::string store_host;
  std::uint16_t store_port = 0;
  std::string secret;
};

class Attempt {
 public:
  /// The options and the signals must outlive it.
  Attempt(const RunJobOptions& options, AttemptPlace place, StopSignals& signals)
      : options_(options), place_(std::move(place)), signals_(signals) {}

  /// Runs all ranks to their end; returns the exit code as run_job does.
  /// Throws IoError if the program cannot be started or a log opened.
  int run();
  /// The signal that ended it, or 0.
  int stop_signal() const { return stop_signal_; }
  /// The local rank that failed first, or -1.
  int first_failed() const { return first_failed_; }

 private:
  std::vector<std::string> environment_of(int local_rank) const;
  int global(std::size_t local) const { return place_.group_rank * place_.processes + static_cast<int>(local); }
  std::string log_folder() const;
  /// "rank 0, 2": those that have not ended.
  std::string names_of_running() const;
  void note(const ProcessEnd& end);
  void pass_on(int signal);
  void watch_stop();
  void tell_store();
  void end_stopped();

  const RunJobOptions& options_;
  AttemptPlace place_;
  StopSignals& signals_;
  Processes ranks_;
  int exit_code_ = 0;
  int stop_signal_ = 0;
  int first_failed_ = -1;
  bool terminated_ = false;                         // the next thing is SIGKILL
  std::optional<Clock::time_point> term_at_;        // set by the first failure, or when a stop takes too long
  std::optional<Clock::time_point> stop_at_;        // when a stop that was asked for has taken too long
  std::optional<Clock::time_point> remind_at_;      // when to say again who is waited for
  std::optional<Clock::time_point> stopped_since_;  // ranks, while others have ended
  std::optional<Clock::time_point> tell_at_;        // when the store is told of the first failure
  std::string failure_;
};

}  // namespace castor::dist
