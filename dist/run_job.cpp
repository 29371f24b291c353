// One attempt after the other. Delicate: each attempt has its own secret and store, so that a straggler of the last one
// cannot join the next.
#include "dist/run_job.h"

#include <csignal>
#include <map>
#include <memory>
#include <optional>

#include <unistd.h>

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "dist/processes.h"
#include "dist/rank_output.h"
#include "dist/store.h"

namespace castor::dist {
namespace {

constexpr std::chrono::milliseconds kTurn{20};

/// Takes the signals that end a launcher for as long as it lives; the thread that makes it asks for them.
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

  /// The next signal, or 0 if none comes for a turn.
  int wait_a_turn() {
    timespec time{0, kTurn.count() * 1'000'000L};
    const int number = sigtimedwait(&set_, nullptr, &time);
    return number > 0 ? number : 0;
  }

 private:
  sigset_t set_;
  sigset_t before_;
};

void check(const RunJobOptions& options) {
  const auto refuse = [](const std::string& text, const char* path) { throw ConfigError(cat("run: ", text), path); };
  if (options.command.empty()) refuse("expected a program to run", "program");
  if (options.processes < 1) refuse(cat("expected at least 1 process, got ", options.processes), "nproc-per-node");
  if (options.nodes < 1) refuse(cat("expected at least 1 node, got ", options.nodes), "nnodes");
  if (options.node_rank < 0 || options.node_rank >= options.nodes) {
    refuse(cat("expected a node rank from 0 to ", options.nodes - 1, ", got ", options.node_rank), "node-rank");
  }
  if (options.max_restarts < 0) refuse(cat("expected 0 or more restarts, got ", options.max_restarts), "max-restarts");
  if (options.nodes > 1 && (options.store_port == 0 || options.secret.empty())) {
    refuse("a job on several nodes needs one endpoint with a port, and one CASTOR_JOB_SECRET on all of them",
           "rdzv-endpoint");
  }
}

/// This process's environment with some variables set, and those of an outer torchrun that would mislead removed.
std::vector<std::string> environment_with(std::map<std::string, std::string> set) {
  std::vector<std::string> result;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    const std::string name = text.substr(0, text.find('='));
    if (name == "OMP_NUM_THREADS") set.erase(name);
    if (!set.contains(name) && name != "TORCHELASTIC_USE_AGENT_STORE") result.push_back(text);
  }
  for (const auto& [name, value] : set) result.push_back(name + "=" + value);
  return result;
}

class Attempt {
 public:
  Attempt(const RunJobOptions& options, int number, StopSignals& signals)
      : options_(options), number_(number), signals_(signals) {}

  /// Returns the exit code; `stopped()` tells whether a signal ended it.
  int run();
  bool stopped() const { return stop_signal_ != 0; }

 private:
  std::vector<std::string> environment_of(int local_rank, const std::string& secret, std::uint16_t port) const;
  int global(std::size_t local) const { return options_.node_rank * options_.processes + static_cast<int>(local); }
  std::string log_folder() const {
    if (options_.output != RunOutput::kFiles) return {};
    return join_path(join_path(options_.log_folder, options_.run_id), cat("attempt_", number_));
  }
  void note(const ProcessEnd& end);

  const RunJobOptions& options_;
  int number_;
  StopSignals& signals_;
  Processes ranks_;
  int exit_code_ = 0;
  int stop_signal_ = 0;
  std::optional<Clock::time_point> term_at_;  // set by the first failure or signal
};

std::vector<std::string> Attempt::environment_of(int local_rank, const std::string& secret, std::uint16_t port) const {
  std::map<std::string, std::string> set{
      {"RANK", cat(global(static_cast<std::size_t>(local_rank)))},
      {"LOCAL_RANK", cat(local_rank)},
      {"WORLD_SIZE", cat(options_.nodes * options_.processes)},
      {"LOCAL_WORLD_SIZE", cat(options_.processes)},
      {"GROUP_RANK", cat(options_.node_rank)},
      {"GROUP_WORLD_SIZE", cat(options_.nodes)},
      {"MASTER_ADDR", options_.store_host},
      {"MASTER_PORT", cat(port)},
      {"TORCHELASTIC_RESTART_COUNT", cat(number_)},
      {"TORCHELASTIC_MAX_RESTARTS", cat(options_.max_restarts)},
      {"TORCHELASTIC_RUN_ID", options_.run_id},
      {"CASTOR_JOB_SECRET", secret},
      {"CASTOR_STORE_IS_SERVED", "1"},
  };
  // Several processes with all cores each would only wait for each other.
  if (options_.processes > 1) set["OMP_NUM_THREADS"] = "1";
  return environment_with(std::move(set));
}

void Attempt::note(const ProcessEnd& end) {
  if (end.exit_code == 0) return;
  if (!term_at_) {
    exit_code_ = end.exit_code;
    term_at_ = Clock::now() + options_.own_end;
    logger().error("rank ", global(end.index), " ", describe(end), "; the other ranks end too");
  } else {
    logger().info("rank ", global(end.index), " ", describe(end));
  }
}

int Attempt::run() {
  const std::string secret =
      options_.secret.empty() ? JobSecret::random().text() : cat(options_.secret, " attempt ", number_);
  std::unique_ptr<StoreServer> store;
  std::uint16_t port = options_.store_port;
  if (options_.node_rank == 0) {
    try {
      store = std::make_unique<StoreServer>(options_.store_host, port, JobSecret(secret));
    } catch (const SocketError& error) {
      throw CommError(cat("run: the store of the job: ", error.what()), -1, "listen", 0);
    }
    port = store->port();
  }
  std::unique_ptr<RankOutput> output;
  if (options_.output != RunOutput::kOwn) output = std::make_unique<RankOutput>(log_folder());
  for (int local = 0; local < options_.processes; ++local) {
    const ProcessOutput ends = output ? output->open(global(static_cast<std::size_t>(local))) : ProcessOutput{};
    try {
      ranks_.start(options_.command, environment_of(local, secret, port), ends);
    } catch (...) {
      if (output) output->started(ends);
      throw;
    }
    if (output) output->started(ends);
  }
  bool terminated = false;
  while (ranks_.running() > 0) {
    const int signal = signals_.wait_a_turn();
    if (signal != 0) {
      logger().info("signal ", signal, ": it goes to all ranks");
      stop_signal_ = signal;
      ranks_.signal_all(signal);
      if (!term_at_) term_at_ = Clock::now() + options_.own_end;
    }
    while (const auto end = ranks_.poll()) note(*end);
    if (!term_at_ || Clock::now() < *term_at_) continue;
    ranks_.signal_all(terminated ? SIGKILL : SIGTERM);
    terminated = true;
    term_at_ = Clock::now() + options_.term_end;
  }
  return stopped() ? 128 + stop_signal_ : exit_code_;
}

}  // namespace

int run_job(const RunJobOptions& options) {
  check(options);
  StopSignals signals;
  for (int number = 0;; ++number) {
    Attempt attempt(options, number, signals);
    const int code = attempt.run();
    if (code == 0 || attempt.stopped() || number == options.max_restarts) return code;
    logger().warning("the job failed with code ", code, "; starting it again, ", number + 1, " of ",
                     options.max_restarts);
  }
}

}  // namespace castor::dist
