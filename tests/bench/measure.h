// How every benchmark of this folder measures and prints: rates by repeats, and beside them what else the machine did.
//
// A two-thread number means nothing when somebody else used a core meanwhile, so each result carries other_cpu_pct and
// steal_pct of the same interval, by the formula of the peers (peers/run_torch.py); tests/bench/run voids rounds by
// them.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace castor::bench {

/// What to time and how often.
struct Timing {
  std::string name;           ///< the same as the peer's, as it names shapes, batch and optimizer
  std::string unit;           ///< of the rate: "samples/s", "tokens/s", "GFLOP/s", "GB/s"
  double items_per_step = 1;  ///< how many of the unit's items one step makes
  int warmup_steps = 1;       ///< untimed steps before the first repeat
  int repeats = 7;            ///< timed intervals; the median is the result
  int steps_per_repeat = 1;   ///< steps in one interval
};

/// Rates over the repeats and the state of the machine meanwhile.
struct Measurement {
  Timing timing;
  double median = 0;         ///< items a second
  double min = 0;            ///< of the repeats
  double max = 0;            ///< of the repeats
  double last_loss = 0;      ///< what the last step returned
  double other_cpu_pct = 0;  ///< CPU time of other processes, in percent of all CPUs' time
  double steal_pct = 0;      ///< time the hypervisor took, in percent of all CPUs' time
  double idle_pct = 0;       ///< in percent of all CPUs' time
  int threads = 1;           ///< compute threads of this process
};

/// Ticks of all CPUs since boot: user, nice, system, idle, iowait, irq, softirq, steal.
using MachineTicks = std::array<double, 8>;
/// The ticks now. Throws IoError where /proc/stat cannot be read.
MachineTicks machine_ticks();
/// CPU time of this process so far, over all its threads.
double own_cpu_seconds();

/// Reads `--repeats R` and `--steps S` from a command line into `timing` and returns the other arguments in order.
/// Throws ConfigError if a value is missing or is no positive number.
std::vector<std::string> read_arguments(int argc, const char* const* argv, Timing& timing);

/// Runs the warm-up and the repeats of `step`, which returns the loss (or 0 where there is none).
/// Throws IoError where /proc/stat cannot be read.
Measurement measure(const Timing& timing, const std::function<double()>& step);

/// Prints one training measurement as the JSON line that tests/bench/run pairs with the peer's.
///   parameters   trainable numbers of the model; must equal the peer's
///   peak_bytes   the most the allocator had handed out at one time
void print_measurement(const Measurement& measurement, std::int64_t parameters, std::int64_t peak_bytes);

/// Prints one result of a benchmark that measured its peer itself; `ratio` is value / peer.
///   peer_name    what was measured beside it, such as "sgemm" or "read-modify-write"
void print_comparison(const Measurement& measurement, const std::string& peer_name, double peer);

}  // namespace castor::bench
