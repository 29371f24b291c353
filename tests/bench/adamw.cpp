// AdamW on one flat range, everything fused (decay, clip factor, bf16 copy), against the read-modify-write bandwidth of
// the same core in the same run. Both are counted in bytes that must move: AdamW reads and writes parameter and two
// moments, reads the gradient and writes the copy, 30 bytes an element; the peer reads and writes its array, 8 bytes an
// element.
//
// Delicate: the arrays together are far larger than any cache, and the two take turns, so that both see the same
// machine.
#include <algorithm>
#include <vector>

#include "core/base/math.h"
#include "core/base/parallel.h"
#include "core/ops/cast.h"
#include "core/ops/optim.h"
#include "tests/bench/measure.h"

namespace {

using namespace castor;

/// x = a x + b over the whole array, by all threads.
void read_modify_write(const Tensor& x) {
  float* data = x.data<float>();
  parallel_for(x.numel(), 1 << 16, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) data[i] = math::fma(data[i], 0.999f, 0.001f);
  });
}

}  // namespace

int main(int argc, char** argv) {
  constexpr std::int64_t kElements = 124'439'808;  // the parameters of GPT-2 124M
  constexpr double kGigabyte = 1e9;
  bench::Timing timing{"adamw 124439808 f32, f32 gradient, decay, clip factor, bf16 copy",
                       "GB/s",
                       30.0 * kElements / kGigabyte,
                       1,
                       9,
                       1};
  bench::read_arguments(argc, argv, timing);

  const Tensor parameter = full({kElements}, 0.5, DType::f32), gradient = full({kElements}, 0.01, DType::f32);
  const Tensor exp_avg = Tensor::zeros({kElements}, DType::f32), exp_avg_sq = Tensor::zeros({kElements}, DType::f32);
  const Tensor copy = Tensor::zeros({kElements}, DType::bf16);
  std::int64_t step = 0;
  const auto adamw = [&] {
    const AdamScalars scalars = adam_scalars({3e-4, 0.9, 0.95, 1e-8, 0.1, true}, ++step, 0.7);
    adam_step({parameter, gradient, copy}, exp_avg, exp_avg_sq, {}, scalars);
    return 0.0;
  };
  const Tensor array = Tensor::zeros({2 * kElements}, DType::f32);
  bench::Timing peer_timing{"read-modify-write", "GB/s", 16.0 * kElements / kGigabyte, 0, 1, timing.steps_per_repeat};
  const auto rewrite = [&] {
    read_modify_write(array);
    return 0.0;
  };
  adamw();
  rewrite();

  // Rounds of one repeat each: the two take turns.
  std::vector<bench::Measurement> rounds;
  std::vector<double> peers;
  const int repeats = timing.repeats;
  timing.repeats = 1;
  timing.warmup_steps = 0;
  for (int i = 0; i < repeats; ++i) {
    peers.push_back(bench::measure(peer_timing, rewrite).median);
    rounds.push_back(bench::measure(timing, adamw));
  }
  std::sort(peers.begin(), peers.end());
  std::sort(rounds.begin(), rounds.end(), [](const auto& a, const auto& b) { return a.median < b.median; });
  bench::Measurement result = rounds[rounds.size() / 2];
  result.min = rounds.front().median;
  result.max = rounds.back().median;
  result.timing.repeats = repeats;
  for (const bench::Measurement& round : rounds) {
    result.other_cpu_pct = std::max(result.other_cpu_pct, round.other_cpu_pct);
    result.steal_pct = std::max(result.steal_pct, round.steal_pct);
  }
  bench::print_comparison(result, "read-modify-write", peers[peers.size() / 2]);
}
