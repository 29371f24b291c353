// The search for a chunk size, on the parameters of well-known models: searches a second; the goal is 10 ms each. To
// stderr: what the size found wastes, as slots of equal size and as memory.
//
// Delicate: chunks are not padded to their size (dist/flat_layout.h), so the unused tail of a slot is no memory; it is
// printed because other libraries measure themselves by it. Arguments: --range N, in 2^20 elements (96, the default of
// search_range_m).
#include "dist/chunk/chunk_search.h"

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "dist/flat_layout.h"
#include "tests/bench/measure.h"
#include "tests/support/model_sizes.h"

using namespace castor;

namespace {

constexpr std::int64_t kMebi = 1 << 20;
constexpr double kGoal = 100;  // a second

int run(int argc, char** argv) {
  bench::Timing timing{"", "1/s", 1, 1, 7, 10};
  std::int64_t range = 96;
  const std::vector<std::string> arguments = bench::read_arguments(argc, argv, timing);
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i] != "--range" || i + 1 == arguments.size())
      throw ConfigError("chunk_search: expected --range N, got " + arguments[i], arguments[i]);
    range = std::stol(arguments[++i]);
  }
  for (const auto& [name, sizes] : test::model_sizes()) {
    dist::ChunkSize found;
    timing.name = cat("chunk search, ", name, ", ", sizes.size(), " parameters");
    const bench::Measurement result = bench::measure(timing, [&, &sizes = sizes] {
      found = dist::search_chunk_size(sizes, 32 * kMebi, range * kMebi, 1024);
      return 0.0;
    });
    std::int64_t parameters = 0, elements = 0;
    std::vector<dist::FlatItem> items;
    for (const std::int64_t size : sizes) {
      parameters += size;
      items.push_back({size, DType::bf16});
    }
    for (const dist::FlatArray& array : dist::lay_out(items, found.elements, 1)) elements += array.elements;
    std::fprintf(stderr,
                 "%s: %.3f ms (worst %.3f); %lld chunks of %.1f Mi elements; unused tails of slots %.3f %%, memory "
                 "beyond the parameters %.4f %%; others took %.0f %% of the CPUs\n",
                 name.c_str(), 1e3 / result.median, 1e3 / result.min, static_cast<long long>(found.chunks),
                 static_cast<double>(found.elements) / kMebi, 100 * found.waste,
                 100.0 * static_cast<double>(elements - parameters) / static_cast<double>(parameters),
                 result.other_cpu_pct + result.steal_pct);
    bench::print_comparison(result, "one in 10 ms", kGoal);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
