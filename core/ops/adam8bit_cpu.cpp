// AdamW with states in 8 bits on the CPU: a block at a time, whose moments stay in the first cache between the update
// and the search for their codes.
#include "core/ops/adam8bit.h"
#include "core/ops/dynamic_code.h"
#include "core/ops/optim_element.h"
#include "core/ops/optim_stretch.h"

namespace castor {
namespace {

using namespace optim_cpu;

constexpr DynamicCode kSigned = make_dynamic_code(true);
constexpr DynamicCode kUnsigned = make_dynamic_code(false);

/// Writes the codes of `moment`, a block of `count` numbers, and returns their scale.
float quantise(const DynamicCode& code, const float* moment, std::int64_t count, std::uint8_t* codes) {
  const float most = fold_lanes<float>(
      count, 0.0f,
      [&](float largest, std::int64_t i) {
        const float size = moment[i] < 0.0f ? -moment[i] : moment[i];
        return size > largest ? size : largest;
      },
      [](float a, float b) { return a > b ? a : b; });
  const float scale = most > 0.0f ? most : 1.0f;  // a block of zeros is the code of 0
#pragma GCC ivdep
  for (std::int64_t i = 0; i < count; ++i) codes[i] = nearest_code(code.edge, moment[i] / scale);
  return most;
}

template <class C>
void update_block(const Adam8bitArgs& args, std::int64_t begin, std::int64_t count, const float* g) {
  alignas(64) float mean[kStatisticsBlock], square[kStatisticsBlock];
  const AdamScalars s = args.scalars;
  float* p = args.parameter.as<float>() + begin;
  std::uint8_t* mean_codes = args.mean_codes.as<std::uint8_t>() + begin;
  std::uint8_t* square_codes = args.square_codes.as<std::uint8_t>() + begin;
  float& mean_scale = args.mean_scales.as<float>()[begin / kStatisticsBlock];
  float& square_scale = args.square_scales.as<float>()[begin / kStatisticsBlock];
  const float mean_factor = mean_scale, square_factor = square_scale;
#pragma GCC ivdep
  for (std::int64_t i = 0; i < count; ++i) {
    const optim::AdamElement element =
        optim::adam_element(s, g[i], p[i], kSigned.value[mean_codes[i]] * mean_factor,
                            kUnsigned.value[square_codes[i]] * square_factor, 0.0f, false);
    mean[i] = element.mean;
    square[i] = element.square;
    p[i] = element.parameter;
  }
  mean_scale = quantise(kSigned, mean, count, mean_codes);
  square_scale = quantise(kUnsigned, square, count, square_codes);
  if constexpr (!std::is_same_v<C, float>) write_copy(args.copy.as<C>() + begin, count, p);
}

}  // namespace

void run(const Cpu&, const Adam8bitArgs& args) {
  visit_training_float(args.copy.defined() ? args.copy.dtype : DType::f32, Adam8bitArgs::kName, [&](auto tag) {
    for_each_block(args.parameter.numel(), [&](std::int64_t begin, std::int64_t count, float* scratch) {
      update_block<typename decltype(tag)::type>(args, begin, count,
                                                 gradient_block(args.gradient, begin, count, scratch));
    });
  });
}

}  // namespace castor
