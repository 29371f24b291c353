// Kernels of SGD, Adam and Lamb on the CPU, and the sums of squares. Delicate: no loop here adds across elements but
// fold_lanes over a whole block, so where a range was cut does not show. Adafactor is in adafactor_cpu.cpp.
#include "core/ops/optim_element.h"
#include "core/ops/optim_stretch.h"

namespace castor {
namespace {

using namespace optim_cpu;

template <bool kKeepsLargest>
struct AdamUpdate {
  AdamScalars s;
  float* p;
  float* mean;
  float* square;
  float* largest;  // amsgrad

  [[gnu::always_inline]] void fetch(std::int64_t begin) const {
    fetch_ahead(mean, begin);
    fetch_ahead(square, begin);
    if constexpr (kKeepsLargest) fetch_ahead(largest, begin);
  }
  [[gnu::always_inline]] void operator()(const float* g, std::int64_t begin, std::int64_t count, float*) const {
#pragma GCC ivdep
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t at = begin + i;
      float most = 0;
      if constexpr (kKeepsLargest) most = largest[at];
      const optim::AdamElement element = optim::adam_element(s, g[i], p[at], mean[at], square[at], most, kKeepsLargest);
      if constexpr (kKeepsLargest) largest[at] = element.largest;
      mean[at] = element.mean;
      square[at] = element.square;
      p[at] = element.parameter;
    }
  }
};

struct SgdUpdate {
  SgdScalars s;
  float* p;
  float* momentum;  // or nullptr

  [[gnu::always_inline]] void fetch(std::int64_t begin) const { fetch_ahead(momentum, begin); }
  [[gnu::always_inline]] void operator()(const float* g, std::int64_t begin, std::int64_t count, float* scratch) const {
    const float rest = 1.0f - s.dampening;
    // The gradient with decay first, then the momentum.
#pragma GCC ivdep
    for (std::int64_t i = 0; i < count; ++i)
      scratch[i] = optim::limited(math::fma(s.weight_decay, p[begin + i], s.gradient_factor * g[i]), s.limit);
    if (momentum != nullptr) {
#pragma GCC ivdep
      for (std::int64_t i = 0; i < count; ++i) {
        const float kept = s.is_first_step ? scratch[i] : math::fma(s.momentum, momentum[begin + i], rest * scratch[i]);
        momentum[begin + i] = kept;
        scratch[i] = s.is_nesterov ? math::fma(s.momentum, kept, scratch[i]) : kept;
      }
    }
#pragma GCC ivdep
    for (std::int64_t i = 0; i < count; ++i)
      p[begin + i] = math::fma(-s.lr, math::fma(s.late_decay, p[begin + i], scratch[i]), p[begin + i]);
  }
};

struct LambUpdate {
  LambScalars s;
  float step_size;
  float* p;
  float* mean;
  float* square;

  [[gnu::always_inline]] void fetch(std::int64_t begin) const {
    fetch_ahead(mean, begin);
    fetch_ahead(square, begin);
  }
  [[gnu::always_inline]] void operator()(const float* g, std::int64_t begin, std::int64_t count, float*) const {
#pragma GCC ivdep
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t at = begin + i;
      const optim::LambElement element = optim::lamb_element(s, g[i], p[at], mean[at], square[at]);
      mean[at] = element.mean;
      square[at] = element.square;
      p[at] = math::fma(-step_size, element.update, p[at]);
    }
  }
};

}  // namespace

void run(const Cpu&, const BlockSquaresArgs& args) {
  for (const auto& [x, sums] : args.pairs) {
    for_each_block(x.numel(), [&x = x, &sums = sums](std::int64_t begin, std::int64_t count, float* scratch) {
      sums.as<double>()[begin / kStatisticsBlock] = squares_of(gradient_block(x, begin, count, scratch), count);
    });
  }
}

void run(const Cpu&, const FoldSegmentsArgs& args) {
  const double* values = args.values.as<double>();
  const std::int64_t* begins = args.begins.as<std::int64_t>();
  for (std::int64_t i = 0; i < args.out.numel(); ++i) {
    const double* const first = values + begins[i];
    args.out.as<double>()[i] = sum_blocks<double>(begins[i + 1] - begins[i], [&](std::int64_t j) { return first[j]; });
  }
}

void run(const Cpu&, const NormLimitArgs& args) {
  double squares = 0;
  for (std::int64_t i = 0; i < args.squares.numel(); ++i) squares += args.squares.as<double>()[i];
  args.factor.as<double>()[0] = optim::norm_limit(squares, args.scale, args.max_norm);
}

void run(const Cpu&, const AdamArgs& args) {
  for (const AdamArgs::Range& range : args.ranges) {
    const AdamScalars scalars =
        optim::with_factor(range.scalars, range.place.as<const AdamScalars>(), args.factor.as<double>());
    float* p = range.parameter.as<float>();
    float* mean = range.exp_avg.as<float>();
    float* square = range.exp_avg_sq.as<float>();
    if (range.max_exp_avg_sq.defined()) {
      update_all(AdamUpdate<true>{scalars, p, mean, square, range.max_exp_avg_sq.as<float>()}, range.gradient,
                 range.copy, range.parameter.numel());
    } else {
      update_all(AdamUpdate<false>{scalars, p, mean, square, nullptr}, range.gradient, range.copy,
                 range.parameter.numel());
    }
  }
}

void run(const Cpu&, const SgdArgs& args) {
  for (const SgdArgs::Range& range : args.ranges) {
    const SgdUpdate update{optim::with_factor(range.scalars, args.factor.as<double>()), range.parameter.as<float>(),
                           range.momentum_buffer.as<float>()};
    update_all(update, range.gradient, range.copy, range.parameter.numel());
  }
}

void run(const Cpu&, const LambSquaresArgs& args) {
  const LambScalars s = args.scalars;
  for_each_block(args.parameter.numel(), [&](std::int64_t begin, std::int64_t count, float* scratch) {
    const float* g = gradient_block(args.gradient, begin, count, scratch);
    const float* p = block_of(args.parameter, begin);
    const float* m = block_of(args.exp_avg, begin);
    const float* v = block_of(args.exp_avg_sq, begin);
#pragma GCC ivdep
    for (std::int64_t i = 0; i < count; ++i) scratch[i] = optim::lamb_element(s, g[i], p[i], m[i], v[i]).update;
    args.parameter_sums.as<double>()[begin / kStatisticsBlock] = squares_of(p, count);
    args.update_sums.as<double>()[begin / kStatisticsBlock] = squares_of(scratch, count);
  });
}

void run(const Cpu&, const LambArgs& args) {
  const LambUpdate update{args.scalars, args.step_size, args.parameter.as<float>(), args.exp_avg.as<float>(),
                          args.exp_avg_sq.as<float>()};
  update_all(update, args.gradient, args.copy, args.parameter.numel());
}

}  // namespace castor
