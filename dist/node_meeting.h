// Where the launchers of a job's machines meet before each attempt: who takes part, where the ranks meet, and when the
// job is over. Machine 0 serves the meeting at the job's endpoint and decides; the others are told.
//
// Delicate: a machine that is gone says nothing, so each launcher gives signs of life and one that has stopped to is
// not waited for. A launcher that comes back is another one: it is known by a random token, not by its number.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "dist/attempt.h"
#include "dist/run_job.h"
#include "dist/stop_signals.h"
#include "dist/store.h"

namespace castor::dist {

/// How many machines (or processes) of `full` go on when `present` are there: the most, from `least` on, that divide
/// `full`, so that a global batch can still be made of equal parts; all that are there if no number does.
int fitting_count(int present, int least, int full);

/// How an attempt ended on one machine.
struct AttemptEnd {
  int code = 0;          ///< run_job's
  bool stopped = false;  ///< by a signal: the job ends
};

class NodeMeeting {
 public:
  /// Opens the meeting (machine 0) or finds it. Throws CommError if that is not possible within join_timeout.
  NodeMeeting(const RunJobOptions& options, StopSignals& signals);
  NodeMeeting(const NodeMeeting&) = delete;
  NodeMeeting& operator=(const NodeMeeting&) = delete;
  ~NodeMeeting();

  /// What is to be done next: an attempt's place, or nothing when the job is over; `code()` is its exit code then.
  ///   before  how this machine's last attempt ended; null at first, and for one that has not taken part
  /// Throws CommError if too few machines come within join_timeout, or machine 0's launcher is lost.
  std::optional<AttemptPlace> next(const AttemptEnd* before);
  int code() const { return code_; }
  /// The job's name, drawn by machine 0: the same on all machines.
  const std::string& job_id() const { return job_id_; }

 private:
  struct Joined {
    std::string token;
    std::optional<AttemptEnd> end;
  };
  struct Sign {
    std::int64_t count = 0;
    Clock::time_point at;
  };
  bool leads() const { return options_.node_rank == 0; }
  std::optional<AttemptPlace> meet(const AttemptEnd* before);
  std::optional<std::string> look(const std::string& key);
  void join(int round, const AttemptEnd* before);
  void turn();  // one turn of waiting; remembers a signal
  std::map<int, Joined> gather(int round);
  void decide(int round);
  std::string verdict(int round, const std::map<int, Joined>& joined);
  void see_signs();
  bool lives(int node) const;
  void beat();
  void farewell();

  const RunJobOptions& options_;
  StopSignals& signals_;
  std::unique_ptr<StoreServer> server_;       // machine 0's, for launchers
  std::unique_ptr<StoreServer> rank_server_;  // and for the ranks of the current attempt
  std::unique_ptr<Store> store_;
  std::string token_;
  std::string job_id_;
  int round_ = 0;
  int code_ = 0;
  int signal_ = 0;
  std::map<int, std::string> members_;  // tokens of the last attempt's machines
  std::map<int, Sign> signs_;
  std::atomic<bool> closing_{false};
  std::thread beating_;
};

}  // namespace castor::dist
