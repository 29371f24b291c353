// Environment, start and end of ranks. Delicate: a rank that fails gets the others time to find out why and to write
// their records; after it they are told to end, and then made to. A stop that was asked for has no such limit, because
// a step may take minutes and a checkpoint follows it; who does not want to wait asks once more.
#include "dist/attempt.h"

#include <csignal>
#include <map>

#include <unistd.h>

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "dist/rank_output.h"
#include "dist/watch.h"

namespace castor::dist {
namespace {

// A rank that had joined is missed by the store at once, which knows what it was doing; that story counts.
constexpr std::chrono::milliseconds kStoryTime{300};
constexpr std::chrono::milliseconds kTellTime{1'000};

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

}  // namespace

std::vector<std::string> Attempt::environment_of(int local_rank) const {
  std::map<std::string, std::string> set{
      {"RANK", cat(global(static_cast<std::size_t>(local_rank)))},
      {"LOCAL_RANK", cat(local_rank)},
      {"WORLD_SIZE", cat(place_.nodes * place_.processes)},
      {"LOCAL_WORLD_SIZE", cat(place_.processes)},
      {"GROUP_RANK", cat(place_.group_rank)},
      {"GROUP_WORLD_SIZE", cat(place_.nodes)},
      {"MASTER_ADDR", place_.store_host},
      {"MASTER_PORT", cat(place_.store_port)},
      {"TORCHELASTIC_RESTART_COUNT", cat(place_.number)},
      {"TORCHELASTIC_MAX_RESTARTS", cat(options_.max_restarts)},
      {"TORCHELASTIC_RUN_ID", options_.run_id},
      {"CASTOR_JOB_SECRET", place_.secret},
      {"CASTOR_JOB_ID", options_.job_id},
      {"CASTOR_FULL_WORLD_SIZE", cat(options_.nodes * options_.processes)},
      {"CASTOR_STORE_IS_SERVED", "1"},
  };
  // Several processes with all cores each would only wait for each other.
  if (place_.processes > 1) set["OMP_NUM_THREADS"] = "1";
  return environment_with(std::move(set));
}

std::string Attempt::log_folder() const {
  if (options_.output != RunOutput::kFiles) return {};
  return join_path(join_path(options_.log_folder, options_.run_id), cat("attempt_", place_.number));
}

void Attempt::note(const ProcessEnd& end) {
  const bool has_stopped = stop_signal_ != 0 && end.exit_code == 128 + stop_signal_;
  if (end.exit_code == 0 || has_stopped) return;
  if (!term_at_) {
    exit_code_ = end.exit_code;
    first_failed_ = static_cast<int>(end.index);
    term_at_ = Clock::now() + options_.own_end;
    tell_at_ = Clock::now() + kStoryTime;
    failure_ = cat("rank ", global(end.index), " ", describe(end));
    logger().error(failure_, "; the other ranks end too");
  } else {
    logger().info("rank ", global(end.index), " ", describe(end));
  }
}

void Attempt::tell_store() {
  if (!tell_at_ || Clock::now() < *tell_at_) return;
  tell_at_.reset();
  if (ranks_.running() == 0) return;
  try {
    report_to_store(place_.store_host, place_.store_port, JobSecret(place_.secret),
                    {global(static_cast<std::size_t>(first_failed_)), "", 0, false, failure_},
                    Clock::now() + kTellTime);
  } catch (const SocketError&) {
    // It is gone, or nobody holds one: the ranks find out by their deadlines, or are ended.
  }
}

// Those who are still at work miss a rank that is stopped; once they have ended, only the launcher can.
void Attempt::end_stopped() {
  const auto all = static_cast<std::size_t>(place_.processes);
  std::size_t stopped = 0;
  for (std::size_t i = 0; i < all; ++i) stopped += ranks_.is_stopped(i) ? 1 : 0;
  if (term_at_ || ranks_.running() == all || stopped < ranks_.running()) return stopped_since_.reset();
  if (!stopped_since_) stopped_since_ = Clock::now();
  if (Clock::now() - *stopped_since_ < options_.own_end) return;
  logger().error(stopped, " of the job's ranks are stopped, although others have ended; they are killed");
  ranks_.signal_all(SIGKILL);
}

int Attempt::run() {
  std::unique_ptr<RankOutput> output;
  if (options_.output != RunOutput::kOwn) output = std::make_unique<RankOutput>(log_folder());
  for (int local = 0; local < place_.processes; ++local) {
    const ProcessOutput ends = output ? output->open(global(static_cast<std::size_t>(local))) : ProcessOutput{};
    try {
      ranks_.start(options_.command, environment_of(local), ends);
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
      const bool is_first = stop_signal_ == 0;
      logger().info("signal ", signal, ": it goes to all ranks",
                    is_first ? ", which end after their step; once more, and they end at once" : "");
      stop_signal_ = signal;
      ranks_.signal_all(signal);
      if (!is_first && !term_at_) term_at_ = Clock::now() + options_.own_end;
    }
    while (const auto end = ranks_.poll()) note(*end);
    tell_store();
    end_stopped();
    if (!term_at_ || Clock::now() < *term_at_) continue;
    ranks_.signal_all(terminated ? SIGKILL : SIGTERM);
    terminated = true;
    term_at_ = Clock::now() + options_.term_end;
  }
  return stop_signal_ != 0 ? 128 + stop_signal_ : exit_code_;
}

}  // namespace castor::dist
