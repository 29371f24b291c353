// The sum of 64 MiB of f32 over ranks of this machine, each a process with one thread: through shared memory, over TCP,
// and by PyTorch's gloo, in turn. One line for each of our transports.
//
// The program starts itself as ranks (dist::run_job) and peers/torch_allreduce.py as gloo's; each side gives the median
// of its repeats, of which the medians over the rounds are compared. Delicate: the ranks of a job together are "own"
// when it is asked what else the machine did; a round in which others took more than --max-other percent is void.
// Arguments: --ranks N (2), --mib N (64), --rounds N (5), --max-other PCT (5), --repeats N (7), --ring (our TCP and
// shared memory sum along a ring instead of in order of ranks), --only TRANSPORT (shm or tcp, without gloo).
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include <sched.h>
#include <unistd.h>

#include "core/base/error.h"
#include "core/base/file.h"
#include "dist/job.h"
#include "dist/run_job.h"
#include "tests/bench/measure.h"
#include "tests/support/temp_dir.h"

using namespace castor;

namespace {

constexpr const char* kPeerProgram = "tests/bench/peers/torch_allreduce.py";
constexpr int kWarmups = 3;

struct Options {
  int ranks = 2;
  int mib = 64;
  int rounds = 5;
  double max_other = 5;
  int repeats = 7;
  bool ring = false;
  std::string only;
};

/// What one run of a job gave.
struct Result {
  double seconds = 0;
  double cpu_seconds = 0;  ///< of one rank, for one all-reduce
  double other_cpu_pct = 0;
  double steal_pct = 0;
  std::string version;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

/// Where there is a CPU for each rank, each stays on its own, as the peer's do.
void pin(int rank, int ranks) {
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

/// A rank: --rank RESULT_FILE MIB REPEATS TRANSPORT ORDER.
int run_rank(const std::vector<std::string>& arguments) {
  const dist::RankInfo info = dist::rank_info_from(dist::process_environment());
  pin(info.rank, info.world_size);
  const int repeats = std::stoi(arguments.at(2));
  dist::JobOptions options;
  options.transport = arguments.at(3) == "shm" ? dist::Transport::kSharedMemory : dist::Transport::kTcp;
  dist::Job job(info, options);
  dist::Comm& world = job.world();
  const Tensor x = Tensor::empty({std::stoll(arguments.at(1)) << 18}, DType::f32);
  std::fill_n(x.view().as<float>(), x.view().numel(), 1.0f);
  dist::Collective sum = dist::Collective::all_reduce(x, "x");
  if (arguments.at(4) == "ring") sum.order = dist::SumOrder::kRing;
  for (int i = 0; i < kWarmups; ++i) world.run(sum);
  std::vector<double> seconds;
  world.barrier();
  const bench::MachineTicks before = bench::machine_ticks();
  const double cpu_before = bench::own_cpu_seconds();
  for (int i = 0; i < repeats; ++i) {
    world.barrier();
    const auto started = std::chrono::steady_clock::now();
    world.run(sum);
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count());
  }
  const auto own = static_cast<float>(bench::own_cpu_seconds() - cpu_before);
  bench::MachineTicks ticks = bench::machine_ticks();
  const Tensor all = Tensor::from_values(std::vector<float>{own}, {1});
  world.all_reduce(all);
  double total = 0;
  for (std::size_t i = 0; i < ticks.size(); ++i) total += ticks[i] -= before[i];
  total = std::max(total, 1.0);
  const auto* values = x.view().as<float>();
  const auto expected = static_cast<float>(std::pow(info.world_size, kWarmups + repeats));
  if (values[0] != expected || values[x.view().numel() - 1] != expected) throw InternalError("the sum is wrong");
  if (info.rank == 0) {
    const double own_ticks = all.item() * static_cast<double>(sysconf(_SC_CLK_TCK));
    const double other = 100 * std::max(ticks[0] + ticks[1] + ticks[2] - own_ticks, 0.0) / total;
    write_file_atomically(arguments.at(0), cat(median(seconds), " ", all.item() / info.world_size / repeats, " ", other,
                                               " ", 100 * ticks[7] / total, " castor\n"));
  }
  return 0;
}

/// Runs a job of `side` ("shm", "tcp" or "gloo") and reads what its rank 0 wrote.
Result run_side(const std::string& side, const Options& options) {
  const test::TempDir folder;
  const std::string result_file = (folder.path() / "result").string();
  dist::RunJobOptions job;
  job.processes = options.ranks;
  if (side == "gloo") {
    job.command = {
        "/usr/bin/python3",  "-B", kPeerProgram, (folder.path() / "meeting").string(), result_file, cat(options.mib),
        cat(options.repeats)};
  } else {
    job.command = {"/proc/self/exe",
                   "--rank",
                   result_file,
                   cat(options.mib),
                   cat(options.repeats),
                   side,
                   options.ring ? "ring" : "by-rank"};
  }
  const int code = dist::run_job(job);
  if (code != 0) throw CommError(cat("the job of ", side, " ended with code ", code), -1, "", 0);
  std::istringstream line(read_text_file(result_file));
  Result result;
  line >> result.seconds >> result.cpu_seconds >> result.other_cpu_pct >> result.steal_pct >> result.version;
  return result;
}

Options read_options(std::vector<std::string> words, int repeats) {
  Options options;
  options.repeats = repeats;
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (words[i] == "--ring") {
      options.ring = true;
      continue;
    }
    if (i + 1 == words.size()) throw ConfigError(cat(words[i], ": unknown, or without its value"), "");
    const std::string& value = words[i + 1];
    if (words[i] == "--ranks") {
      options.ranks = std::stoi(value);
    } else if (words[i] == "--mib") {
      options.mib = std::stoi(value);
    } else if (words[i] == "--rounds") {
      options.rounds = std::stoi(value);
    } else if (words[i] == "--max-other") {
      options.max_other = std::stod(value);
    } else if (words[i] == "--only") {
      options.only = value;
    } else {
      throw ConfigError(cat(words[i], ": no such option"), "");
    }
    ++i;
  }
  return options;
}

/// The median of a side over the rounds, in GB of the tensor a second.
struct Side {
  std::vector<double> rates;
  double value() const { return median(rates); }
  double least() const { return *std::min_element(rates.begin(), rates.end()); }
  double most() const { return *std::max_element(rates.begin(), rates.end()); }
};

void drive(const Options& options) {
  setenv("GLOO_SOCKET_IFNAME", "lo", 1);
  std::vector<std::string> names = {"shm", "tcp", "gloo"};
  if (!options.only.empty()) names = {options.only};
  std::map<std::string, Side> sides;
  int valid = 0;
  int done = 0;
  double other = 0;
  double steal = 0;
  std::string version;
  for (; valid < options.rounds && done < 3 * options.rounds; ++done) {
    std::map<std::string, Result> round;
    double round_other = 0;
    for (const std::string& name : names) {
      round[name] = run_side(name, options);
      round_other = std::max({round_other, round[name].other_cpu_pct, round[name].steal_pct});
      std::fprintf(stderr, "round %d: %-4s %.2f ms, CPU %.2f ms a rank, others %.1f %%, steal %.1f %%\n", done + 1,
                   name.c_str(), round[name].seconds * 1e3, round[name].cpu_seconds * 1e3, round[name].other_cpu_pct,
                   round[name].steal_pct);
    }
    if (round_other > options.max_other) {
      std::fprintf(stderr, "  void: the limit is %.1f %%\n", options.max_other);
      continue;
    }
    ++valid;
    for (const auto& [name, result] : round) {
      sides[name].rates.push_back(options.mib * 1048576.0 * 1e-9 / result.seconds);
      other = std::max(other, result.other_cpu_pct);
      steal = std::max(steal, result.steal_pct);
      if (name == "gloo") version = result.version;
    }
  }
  if (valid == 0) {
    throw ConfigError(cat("no quiet round in ", done, "; stop what else runs here, or raise --max-other"), "");
  }
  for (const std::string& name : names) {
    if (name == "gloo") continue;
    const Side& side = sides[name];
    std::string peer;
    if (sides.contains("gloo")) {
      const Side& gloo = sides["gloo"];
      peer = cat(", \"peer\": ", gloo.value(), ", \"ratio\": ", side.value() / gloo.value(), ", \"peer_name\": \"gloo ",
                 version, "\", \"peer_min\": ", gloo.least(), ", \"peer_max\": ", gloo.most());
    }
    std::printf(
        "{\"name\": \"allreduce-%s-%dranks-%dMiB-f32%s\", \"value\": %.4g, \"unit\": \"GB/s\"%s, \"min\": %.4g, "
        "\"max\": %.4g, \"threads\": 1, \"rounds\": %d, \"void_rounds\": %d, \"other_cpu_pct\": %.1f, "
        "\"steal_pct\": %.1f}\n",
        name.c_str(), options.ranks, options.mib, options.ring ? "-ring" : "", side.value(), peer.c_str(), side.least(),
        side.most(), valid, done - valid, other, steal);
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc > 1 && std::string(argv[1]) == "--rank") return run_rank({argv + 2, argv + argc});
    bench::Timing timing;
    const std::vector<std::string> words = bench::read_arguments(argc, argv, timing);
    drive(read_options(words, timing.repeats));
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "allreduce: %s\n", error.what());
    return 1;
  }
}
