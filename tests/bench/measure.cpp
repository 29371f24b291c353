// Reads the kernel's counters around the timed repeats. Delicate: /proc/stat counts in ticks of 10 ms over all CPUs and
// this process's own time comes from another clock, so intervals under a few tenths of a second give rough percentages.
#include "tests/bench/measure.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <exception>
#include <fstream>
#include <functional>
#include <numeric>

#include <omp.h>
#include <unistd.h>

#include "core/base/error.h"

namespace castor::bench {
namespace {

double median_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

int positive_number(const std::string& option, const std::string& text) {
  int value = 0;
  std::size_t used = 0;
  try {
    value = std::stoi(text, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  if (used != text.size() || value <= 0) {
    throw ConfigError(cat(option, ": expected a positive number, got '", text, "'"), option);
  }
  return value;
}

}  // namespace

MachineTicks machine_ticks() {
  std::ifstream stat("/proc/stat");
  std::string label;
  MachineTicks ticks{};
  stat >> label;
  for (double& field : ticks) stat >> field;
  if (!stat) throw IoError("measure: cannot read the first line of /proc/stat", "/proc/stat", errno);
  return ticks;
}

double own_cpu_seconds() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

std::vector<std::string> read_arguments(int argc, const char* const* argv, Timing& timing) {
  std::vector<std::string> others;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument != "--repeats" && argument != "--steps") {
      others.push_back(argument);
      continue;
    }
    if (i + 1 == argc) throw ConfigError(cat(argument, ": expected a positive number after it"), argument);
    (argument == "--repeats" ? timing.repeats : timing.steps_per_repeat) = positive_number(argument, argv[++i]);
  }
  return others;
}

Measurement measure(const Timing& timing, const std::function<double()>& step) {
  Measurement result;
  result.timing = timing;
  result.threads = omp_get_max_threads();
  for (int i = 0; i < timing.warmup_steps; ++i) step();

  std::vector<double> rates;
  const MachineTicks ticks_before = machine_ticks();
  const double own_before = own_cpu_seconds();
  for (int repeat = 0; repeat < timing.repeats; ++repeat) {
    const auto started = std::chrono::steady_clock::now();
    for (int i = 0; i < timing.steps_per_repeat; ++i) result.last_loss = step();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - started;
    rates.push_back(timing.items_per_step * timing.steps_per_repeat / seconds.count());
  }
  const double own_ticks = (own_cpu_seconds() - own_before) * static_cast<double>(sysconf(_SC_CLK_TCK));
  MachineTicks ticks = machine_ticks();
  std::transform(ticks.begin(), ticks.end(), ticks_before.begin(), ticks.begin(), std::minus<>());

  const double total = std::max(std::accumulate(ticks.begin(), ticks.end(), 0.0), 1.0);
  result.other_cpu_pct = 100 * std::max(ticks[0] + ticks[1] + ticks[2] - own_ticks, 0.0) / total;
  result.steal_pct = 100 * ticks[7] / total;
  result.idle_pct = 100 * ticks[3] / total;
  result.median = median_of(rates);
  result.min = *std::min_element(rates.begin(), rates.end());
  result.max = *std::max_element(rates.begin(), rates.end());
  return result;
}

void print_measurement(const Measurement& measurement, std::int64_t parameters, std::int64_t peak_bytes) {
  const Timing& timing = measurement.timing;
  std::printf(
      "{\"name\": \"%s\", \"unit\": \"%s\", \"median\": %.1f, \"min\": %.1f, \"max\": %.1f, \"repeats\": %d, "
      "\"steps\": %d, \"threads\": %d, \"parameters\": %lld, \"loss\": %.4f, \"other_cpu_pct\": %.1f, "
      "\"steal_pct\": %.1f, \"idle_pct\": %.1f, \"peak_bytes\": %lld}\n",
      timing.name.c_str(), timing.unit.c_str(), measurement.median, measurement.min, measurement.max, timing.repeats,
      timing.steps_per_repeat, measurement.threads, static_cast<long long>(parameters), measurement.last_loss,
      measurement.other_cpu_pct, measurement.steal_pct, measurement.idle_pct, static_cast<long long>(peak_bytes));
  std::fflush(stdout);
}

void print_comparison(const Measurement& measurement, const std::string& peer_name, double peer) {
  const Timing& timing = measurement.timing;
  std::printf(
      "{\"name\": \"%s\", \"value\": %.6g, \"unit\": \"%s\", \"peer\": %.6g, \"ratio\": %.4f, \"peer_name\": \"%s\", "
      "\"min\": %.6g, \"max\": %.6g, \"repeats\": %d, \"threads\": %d, \"other_cpu_pct\": %.1f, \"steal_pct\": %.1f}\n",
      timing.name.c_str(), measurement.median, timing.unit.c_str(), peer, measurement.median / peer, peer_name.c_str(),
      measurement.min, measurement.max, timing.repeats, measurement.threads, measurement.other_cpu_pct,
      measurement.steal_pct);
  std::fflush(stdout);
}

}  // namespace castor::bench
