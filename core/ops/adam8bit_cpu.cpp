// AdamW with states in 8 bits on the CPU: a block at a time, whose moments stay in the first cache between the update
// and the search for their codes. Tables are read eight entries at a time (AVX2, the baseline): the compiler would not.
#include "core/ops/adam8bit.h"
#include "core/ops/dynamic_code.h"
#include "core/ops/optim_element.h"
#include "core/ops/optim_stretch.h"

namespace castor {
namespace {

using namespace optim_cpu;

constexpr DynamicCode kSigned = make_dynamic_code(true);
constexpr DynamicCode kUnsigned = make_dynamic_code(false);
constexpr std::int64_t kLanes = 8;

/// moment[i] = the number of code i, times the block's scale.
void dequantise(const DynamicCode& code, const std::uint8_t* codes, float scale, std::int64_t count, float* moment) {
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const __m256i eight = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + i)));
    const __m256 values = _mm256_i32gather_ps(code.value, eight, sizeof(float));
    _mm256_storeu_ps(moment + i, _mm256_mul_ps(values, _mm256_set1_ps(scale)));
  }
  for (; i < count; ++i) moment[i] = code.value[codes[i]] * scale;
}

/// nearest_code of eight numbers.
__m256i nearest_codes(const DynamicCode& code, __m256 x) {
  __m256i found = _mm256_setzero_si256();
  for (int step = DynamicCode::kSize / 2; step > 0; step /= 2) {
    const __m256 edge = _mm256_i32gather_ps(code.edge + step - 1, found, sizeof(float));
    const __m256i is_above = _mm256_castps_si256(_mm256_cmp_ps(x, edge, _CMP_GT_OQ));
    found = _mm256_add_epi32(found, _mm256_and_si256(is_above, _mm256_set1_epi32(step)));
  }
  return found;
}

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
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    alignas(32) std::int32_t eight[kLanes];
    const __m256 x = _mm256_div_ps(_mm256_loadu_ps(moment + i), _mm256_set1_ps(scale));
    _mm256_store_si256(reinterpret_cast<__m256i*>(eight), nearest_codes(code, x));
    for (std::int64_t k = 0; k < kLanes; ++k) codes[i + k] = static_cast<std::uint8_t>(eight[k]);
  }
  for (; i < count; ++i) codes[i] = nearest_code(code.edge, moment[i] / scale);
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
  dequantise(kSigned, mean_codes, mean_scale, count, mean);
  dequantise(kUnsigned, square_codes, square_scale, count, square);
#pragma GCC ivdep
  for (std::int64_t i = 0; i < count; ++i) {
    const optim::AdamElement element = optim::adam_element(s, g[i], p[i], mean[i], square[i], 0.0f, false);
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
