// Interleaved timing. Work too short for the clock is called several times between two readings.
#include "tests/bench/race.h"

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "core/base/error.h"
#include "tests/bench/measure.h"

namespace castor::bench {
namespace {

double median_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace

void race(const std::string& name, double flops, int rounds, const std::vector<Candidate>& candidates,
          std::size_t chosen) {
  std::vector<std::vector<double>> seconds(candidates.size());
  const int calls = std::max(1, static_cast<int>(2e8 / flops));
  const Timing timing{name, "GFLOP/s", flops * 1e-9, 1, rounds, 1};
  Measurement measurement = measure(timing, [&] {
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      const auto started = std::chrono::steady_clock::now();
      for (int call = 0; call < calls; ++call) candidates[i].run();
      seconds[i].push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count() / calls);
    }
    return 0.0;
  });

  std::fprintf(stderr, "%s\n", name.c_str());
  double best_other = 1e30;
  std::string best_name = "none";
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    const double middle = median_of(seconds[i]);
    std::fprintf(stderr, "  %s %-56s %9.1f us %8.1f GFLOP/s\n", i == chosen ? "*" : " ", candidates[i].name.c_str(),
                 middle * 1e6, flops * 1e-9 / middle);
    if (i != chosen && middle < best_other) {
      best_other = middle;
      best_name = candidates[i].name;
    }
  }
  const auto [least, greatest] = std::minmax_element(seconds[chosen].begin(), seconds[chosen].end());
  measurement.median = flops * 1e-9 / median_of(seconds[chosen]);
  measurement.min = flops * 1e-9 / *greatest;
  measurement.max = flops * 1e-9 / *least;
  print_comparison(measurement, cat("best other: ", best_name), flops * 1e-9 / best_other);
}

}  // namespace castor::bench
