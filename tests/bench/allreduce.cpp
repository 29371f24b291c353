// The sum of 64 MiB of f32 over ranks of this machine, each a process with one thread: through shared memory, over TCP,
// and by PyTorch's gloo, in turn. One line for each of our transports.
//
// The program starts itself as ranks (jobs.h) and peers/torch_allreduce.py as gloo's.
// Arguments: --ranks N (2), --mib N (64), --rounds N (5), --max-other PCT (5), --repeats N (7), --ring (our TCP and
// shared memory sum along a ring instead of in order of ranks), --only TRANSPORT (shm or tcp, without gloo).
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "core/base/error.h"
#include "dist/job.h"
#include "tests/bench/jobs.h"

using namespace castor;

namespace {

constexpr const char* kPeerProgram = "tests/bench/peers/torch_allreduce.py";
constexpr int kWarmups = 3;

/// A rank: --rank RESULT_FILE MIB REPEATS TRANSPORT ORDER.
int run_rank(const std::vector<std::string>& arguments) {
  const dist::RankInfo info = dist::rank_info_from(dist::process_environment());
  bench::pin_rank(info.rank, info.world_size);
  const int repeats = std::stoi(arguments.at(2));
  dist::JobOptions options;
  options.transport = arguments.at(3) == "shm" ? dist::Transport::kSharedMemory : dist::Transport::kTcp;
  dist::Job job(info, options);
  const Tensor x = Tensor::empty({std::stoll(arguments.at(1)) << 18}, DType::f32);
  std::fill_n(x.view().as<float>(), x.view().numel(), 1.0f);
  dist::Collective sum = dist::Collective::all_reduce(x, "x");
  if (arguments.at(4) == "ring") sum.order = dist::SumOrder::kRing;
  bench::time_rank(job.world(), kWarmups, repeats, arguments.at(0), [&] { job.world().run(sum); });
  const auto* values = x.view().as<float>();
  const auto expected = static_cast<float>(std::pow(info.world_size, kWarmups + repeats));
  if (values[0] != expected || values[x.view().numel() - 1] != expected) throw InternalError("the sum is wrong");
  return 0;
}

void drive(std::vector<std::string> words) {
  setenv("GLOO_SOCKET_IFNAME", "lo", 1);
  bench::JobTiming timing;
  timing.read(words);
  std::string mib = "64";
  std::string order = "by-rank";
  std::vector<std::string> transports = {"shm", "tcp"};
  bool with_peer = true;
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (words[i] == "--ring") {
      order = "ring";
    } else if (words[i] == "--mib" && i + 1 < words.size()) {
      mib = words[++i];
    } else if (words[i] == "--only" && i + 1 < words.size()) {
      transports = {words[++i]};
      with_peer = false;
    } else {
      throw ConfigError(cat(words[i], ": unknown, or without its value"), words[i]);
    }
  }
  const std::string repeats = cat(timing.repeats);
  bench::JobRace race;
  race.name = cat("allreduce-%-", timing.ranks, "ranks-", mib, "MiB-f32", order == "ring" ? "-ring" : "");
  race.unit = "GB/s";
  race.items = std::stod(mib) * 1048576e-9;
  for (const std::string& transport : transports) {
    race.ours.push_back({transport, [=](const std::string& result, const std::string&) -> std::vector<std::string> {
                           return {"/proc/self/exe", "--rank", result, mib, repeats, transport, order};
                         }});
  }
  if (with_peer) {
    race.peer.push_back({"gloo", [=](const std::string& result, const std::string& folder) -> std::vector<std::string> {
                           return {"/usr/bin/python3", "-B", kPeerProgram, folder + "/meeting", result, mib, repeats};
                         }});
  }
  race_jobs(timing, race);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc > 1 && std::string(argv[1]) == "--rank") return run_rank({argv + 2, argv + argc});
    drive({argv + 1, argv + argc});
    return 0;
  } catch (const ConfigError& error) {
    std::fprintf(stderr, "allreduce: %s\n", error.what());
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "allreduce: %s\n", error.what());
    return 1;
  }
}
