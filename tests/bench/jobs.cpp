// Rounds of jobs. Delicate: a result is one line of five words, the same from Castor's ranks and from a peer's.
#include "tests/bench/jobs.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <sstream>

#include <sched.h>
#include <unistd.h>

#include "core/base/error.h"
#include "core/base/file.h"
#include "dist/run_job.h"
#include "tests/bench/measure.h"
#include "tests/support/temp_dir.h"

namespace castor::bench {
namespace {

/// What one run of a job gave.
struct Result {
  double seconds = 0;
  double cpu_seconds = 0;  // of one rank, for one repeat
  double other_cpu_pct = 0;
  double steal_pct = 0;
  std::string version;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

Result run_side(const JobSide& side, int ranks) {
  const test::TempDir folder;
  const std::string result_file = (folder.path() / "result").string();
  dist::RunJobOptions job;
  job.processes = ranks;
  job.command = side.command(result_file, folder.path().string());
  const int code = dist::run_job(job);
  if (code != 0) throw CommError(cat("the job of ", side.name, " ended with code ", code), -1, "", 0);
  std::istringstream line(read_text_file(result_file));
  Result result;
  if (!(line >> result.seconds >> result.cpu_seconds >> result.other_cpu_pct >> result.steal_pct >> result.version)) {
    throw FormatError(cat("the result of ", side.name, " is not five words"), result_file, 0);
  }
  return result;
}

/// A side's rates over the quiet rounds.
struct Rates {
  std::vector<double> values;
  double middle() const { return median(values); }
  double least() const { return *std::min_element(values.begin(), values.end()); }
  double most() const { return *std::max_element(values.begin(), values.end()); }
};

std::string named(std::string pattern, const std::string& side) {
  const std::size_t at = pattern.find('%');
  return at == std::string::npos ? pattern : pattern.replace(at, 1, side);
}

}  // namespace

void JobTiming::read(std::vector<std::string>& words) {
  std::vector<std::string> left;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const bool known =
        words[i] == "--ranks" || words[i] == "--rounds" || words[i] == "--repeats" || words[i] == "--max-other";
    if (!known) {
      left.push_back(words[i]);
      continue;
    }
    if (i + 1 == words.size()) throw ConfigError(cat(words[i], " needs a number"), words[i]);
    const double value = std::stod(words[i + 1]);
    if (words[i] == "--ranks") ranks = static_cast<int>(value);
    if (words[i] == "--rounds") rounds = static_cast<int>(value);
    if (words[i] == "--repeats") repeats = static_cast<int>(value);
    if (words[i] == "--max-other") max_other = value;
    ++i;
  }
  if (ranks < 1 || rounds < 1 || repeats < 1) {
    throw ConfigError("--ranks, --rounds and --repeats are at least 1", "--ranks");
  }
  words = left;
}

void race_jobs(const JobTiming& timing, const JobRace& race) {
  std::vector<JobSide> sides = race.ours;
  sides.insert(sides.end(), race.peer.begin(), race.peer.end());
  std::map<std::string, Rates> rates;
  int valid = 0;
  int done = 0;
  double other = 0;
  double steal = 0;
  std::string version;
  for (; valid < timing.rounds && done < 3 * timing.rounds; ++done) {
    std::map<std::string, Result> round;
    double round_other = 0;
    for (const JobSide& side : sides) {
      const Result& result = round[side.name] = run_side(side, timing.ranks);
      round_other = std::max({round_other, result.other_cpu_pct, result.steal_pct});
      std::fprintf(stderr, "round %d: %-14s %.2f ms, CPU %.2f ms a rank, others %.1f %%, steal %.1f %%\n", done + 1,
                   side.name.c_str(), result.seconds * 1e3, result.cpu_seconds * 1e3, result.other_cpu_pct,
                   result.steal_pct);
    }
    if (round_other > timing.max_other) {
      std::fprintf(stderr, "  void: the limit is %.1f %%\n", timing.max_other);
      continue;
    }
    ++valid;
    for (const auto& [name, result] : round) {
      rates[name].values.push_back(race.items / result.seconds);
      other = std::max(other, result.other_cpu_pct);
      steal = std::max(steal, result.steal_pct);
    }
    if (!race.peer.empty()) version = round[race.peer[0].name].version;
  }
  if (valid == 0) {
    throw ConfigError(cat("no quiet round in ", done, "; stop what else runs here, or raise --max-other"), "");
  }
  for (const JobSide& side : race.ours) {
    const Rates& own = rates[side.name];
    std::string peer;
    if (!race.peer.empty()) {
      const Rates& theirs = rates[race.peer[0].name];
      peer =
          cat(", \"peer\": ", theirs.middle(), ", \"ratio\": ", own.middle() / theirs.middle(), ", \"peer_name\": \"",
              race.peer[0].name, " ", version, "\", \"peer_min\": ", theirs.least(), ", \"peer_max\": ", theirs.most());
    }
    std::printf(
        "{\"name\": \"%s\", \"value\": %.6g, \"unit\": \"%s\"%s, \"min\": %.6g, \"max\": %.6g, \"ranks\": %d, "
        "\"threads\": 1, \"rounds\": %d, \"void_rounds\": %d, \"other_cpu_pct\": %.1f, \"steal_pct\": %.1f}\n",
        named(race.name, side.name).c_str(), own.middle(), race.unit.c_str(), peer.c_str(), own.least(), own.most(),
        timing.ranks, valid, done - valid, other, steal);
  }
}

void pin_rank(int rank, int ranks) {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0 || CPU_COUNT(&allowed) < ranks) return;
  for (int cpu = 0, index = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed) || index++ != rank) continue;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    sched_setaffinity(0, sizeof(one), &one);
  }
}

void time_rank(dist::Comm& world, int warmups, int repeats, const std::string& result_file,
               const std::function<void()>& work) {
  for (int i = 0; i < warmups; ++i) work();
  std::vector<double> seconds;
  world.barrier();
  const MachineTicks before = machine_ticks();
  const double cpu_before = own_cpu_seconds();
  for (int i = 0; i < repeats; ++i) {
    world.barrier();
    const auto started = std::chrono::steady_clock::now();
    work();
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count());
  }
  const auto own = static_cast<float>(own_cpu_seconds() - cpu_before);
  MachineTicks ticks = machine_ticks();
  const Tensor all = Tensor::from_values(std::vector<float>{own}, {1});
  world.all_reduce(all);
  double total = 0;
  for (std::size_t i = 0; i < ticks.size(); ++i) total += ticks[i] -= before[i];
  total = std::max(total, 1.0);
  if (world.rank() != 0) return;
  const double own_ticks = all.item() * static_cast<double>(sysconf(_SC_CLK_TCK));
  const double other = 100 * std::max(ticks[0] + ticks[1] + ticks[2] - own_ticks, 0.0) / total;
  write_file_atomically(result_file, cat(median(seconds), " ", all.item() / world.world_size() / repeats, " ", other,
                                         " ", 100 * ticks[7] / total, " castor\n"));
}

}  // namespace castor::bench
