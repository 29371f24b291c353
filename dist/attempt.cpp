// Environment, start and end of ranks. Delicate: a rank that fails gets the others time to find out why and to write
// their records; after it they are told to end, and then made to. A stop that the user asked for does not start that
// clock: SIGTERM would be the ranks' second signal, on which they leave without saving.
#include "dist/attempt.h"

#include <algorithm>
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
constexpr std::chrono::seconds kRemindTime{30};

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

std::string Attempt::names_of_running() const {
  std::string names;
  for (std::size_t i = 0; i < static_cast<std::size_t>(place_.processes); ++i) {
    if (ranks_.id(i) > 0) names += cat(names.empty() ? "rank " : ", ", global(i));
  }
  return names;
}

void Attempt::note(const ProcessEnd& end) {
  if (end.exit_code == 0) return;
  const std::string story = cat("rank ", global(end.index), " ", describe(end));
  // This is how a rank answers a stop; the others are on their way, too.
  const bool answers = stop_signal_ != 0 && end.signal == 0 && end.exit_code == 128 + stop_signal_;
  if (term_at_ || answers) return logger().info(story);
  exit_code_ = end.exit_code;
  first_failed_ = static_cast<int>(end.index);
  term_at_ = Clock::now() + options_.own_end;
  tell_at_ = Clock::now() + kStoryTime;
  failure_ = story;
  // One that does not know how to stop dies of the signal that was passed on, as the user wished.
  const bool is_asked_for = stop_signal_ != 0 && end.signal == stop_signal_;
  logger().write(is_asked_for ? LogLevel::kInfo : LogLevel::kError, cat(failure_, "; the other ranks end too"));
}

void Attempt::pass_on(int signal) {
  const bool is_first = stop_signal_ == 0;
  stop_signal_ = signal;
  ranks_.signal_all(signal);
  if (!is_first) {
    logger().info("signal ", signal, " goes to all ranks again; those that it does not end within ",
                  options_.term_end.count() / 1000, " s are killed: ", names_of_running());
    const auto end = Clock::now() + options_.term_end;
    term_at_ = term_at_ ? std::min(*term_at_, end) : end;
    terminated_ = true;
  } else if (term_at_) {
    logger().info("signal ", signal, " goes to all ranks, which are ending already");
  } else {
    stop_at_ = Clock::now() + options_.stop_timeout;
    remind_at_ = Clock::now() + kRemindTime;
    logger().info("signal ", signal, " goes to all ranks; waiting for ", names_of_running(), ", at most ",
                  options_.stop_timeout.count() / 1000,
                  " s (--stop-timeout), to finish a step, save and end; a second signal (Ctrl-C) ends them at once");
  }
}

// Bounds a stop that was asked for, and says who keeps it waiting.
void Attempt::watch_stop() {
  if (!stop_at_ || term_at_ || ranks_.running() == 0) return;
  if (Clock::now() >= *stop_at_) {
    logger().error(names_of_running(), " did not end within ", options_.stop_timeout.count() / 1000, " s after signal ",
                   stop_signal_,
                   " and is killed: what was not saved is lost; give ranks more time to stop with --stop-timeout");
    terminated_ = true;
    term_at_ = Clock::now();
  } else if (Clock::now() >= *remind_at_) {
    logger().info("still waiting for ", names_of_running(), " to finish a step, save and end");
    remind_at_ = Clock::now() + kRemindTime;
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
  while (ranks_.running() > 0) {
    const int signal = signals_.wait_a_turn();
    if (signal != 0) pass_on(signal);
    while (const auto end = ranks_.poll()) note(*end);
    tell_store();
    end_stopped();
    watch_stop();
    if (!term_at_ || Clock::now() < *term_at_) continue;
    ranks_.signal_all(terminated_ ? SIGKILL : SIGTERM);
    terminated_ = true;
    term_at_ = Clock::now() + options_.term_end;
  }
  return stop_signal_ != 0 ? 128 + stop_signal_ : exit_code_;
}

}  // namespace castor::dist
