// One attempt after the other. Delicate: each attempt has its own secret and store, so that a straggler of the last one
// cannot join the next; a job of several machines that may restart meets before each (dist/node_meeting.h).
#include "dist/run_job.h"

#include <algorithm>
#include <memory>

#include "core/base/error.h"
#include "core/base/log.h"
#include "dist/attempt.h"
#include "dist/node_meeting.h"
#include "dist/socket.h"
#include "dist/stop_signals.h"
#include "dist/store.h"

namespace castor::dist {
namespace {

constexpr std::chrono::seconds kStoreFarewell{60};

void check(const RunJobOptions& options) {
  const auto refuse = [](const std::string& text, const char* path) { throw ConfigError(text, path); };
  if (options.command.empty()) refuse("expected a program to run", "program");
  if (options.processes < 1) refuse(cat("expected at least 1 process, got ", options.processes), "nproc-per-node");
  if (options.nodes < 1) refuse(cat("expected at least 1 node, got ", options.nodes), "nnodes");
  if (options.node_rank < 0 || options.node_rank >= options.nodes) {
    refuse(cat("expected a node rank from 0 to ", options.nodes - 1, ", got ", options.node_rank), "node-rank");
  }
  if (options.max_restarts < 0) refuse(cat("expected 0 or more restarts, got ", options.max_restarts), "max-restarts");
  if (options.least_nodes > options.nodes) refuse("expected no more nodes at least than at most", "nnodes");
  if (options.least_processes > options.processes) {
    refuse("expected no more processes at least than at most", "nproc-per-node");
  }
  if (options.least_processes > 0 && options.nodes > 1) {
    refuse("fewer processes are for a job of one machine; let machines be fewer", "nproc-per-node");
  }
  if (options.nodes > 1 && (options.store_port == 0 || options.secret.empty())) {
    refuse("a job on several nodes needs one endpoint with a port, and one CASTOR_JOB_SECRET on all of them",
           "rdzv-endpoint");
  }
}

/// The store of an attempt whose place is fixed; null on other machines than 0. Fills in port and secret.
std::unique_ptr<StoreServer> serve_store(const RunJobOptions& options, AttemptPlace& place) {
  place.secret = options.secret.empty() ? JobSecret::random().text() : cat(options.secret, " attempt ", place.number);
  if (options.node_rank != 0) return nullptr;
  try {
    auto store = std::make_unique<StoreServer>(options.store_host, options.store_port, JobSecret(place.secret));
    place.store_port = store->port();
    return store;
  } catch (const SocketError& error) {
    throw CommError(cat("the store of the job: ", error.what()), -1, "listen", 0);
  }
}

/// A job of one machine, or of several that are all there from the first to the last rank and never start again.
int run_fixed(const RunJobOptions& options, StopSignals& signals) {
  int processes = options.processes;
  int last_failed = -1;
  for (int number = 0;; ++number) {
    AttemptPlace place{number, options.nodes, options.node_rank, processes, options.store_host, options.store_port, {}};
    const auto store = serve_store(options, place);
    Attempt attempt(options, place, signals);
    const int code = attempt.run();
    // Ranks of other machines may still be leaving.
    if (store && code == 0 && options.nodes > 1) store->wait_for_all_to_leave(kStoreFarewell);
    if (code == 0 || attempt.stop_signal() != 0 || number == options.max_restarts) return code;
    const bool cannot_come_back = attempt.first_failed() == last_failed && options.least_processes > 0;
    last_failed = attempt.first_failed();
    if (cannot_come_back && processes > options.least_processes) {
      const int fewer = fitting_count(processes - 1, options.least_processes, options.processes);
      logger().warning("rank ", last_failed, " failed first twice in a row; the job goes on with ", fewer, " of ",
                       options.processes, " ranks");
      processes = fewer;
      last_failed = -1;
    }
    logger().warning("the job failed with code ", code, "; starting it again, ", number + 1, " of ",
                     options.max_restarts);
  }
}

/// A job of several machines that may start again, perhaps on fewer.
int run_elastic(const RunJobOptions& options, StopSignals& signals) {
  NodeMeeting meeting(options, signals);
  RunJobOptions own = options;
  own.job_id = meeting.job_id();
  std::optional<AttemptEnd> before;
  while (auto place = meeting.next(before ? &*before : nullptr)) {
    Attempt attempt(own, *place, signals);
    const int code = attempt.run();
    before = AttemptEnd{code, attempt.stop_signal() != 0};
  }
  return meeting.code();
}

}  // namespace

int run_job(const RunJobOptions& given) {
  check(given);
  RunJobOptions options = given;
  if (options.least_nodes == 0) options.least_nodes = options.nodes;
  if (options.job_id.empty()) options.job_id = options.nodes == 1 ? JobSecret::random().text() : options.run_id;
  StopSignals signals;
  const bool may_change = options.max_restarts > 0 || options.least_nodes < options.nodes;
  return options.nodes > 1 && may_change ? run_elastic(options, signals) : run_fixed(options, signals);
}

}  // namespace castor::dist
