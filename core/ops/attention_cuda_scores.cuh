// What attention's kernels on tensor cores share, those for Hopper and those for any GPU: sizes and the causal cut,
// scores that become probabilities, and accumulators that become operands or results.
//
// In both an accumulator of [16, N] lies in a warp so: lane t holds rows t / 4 and t / 4 + 8, and of each 8 columns the
// two from 2 (t % 4) on: element 4 j + 2 h + e is row t / 4 + 8 h, column 8 j + 2 (t % 4) + e. Source: NVIDIA, PTX ISA
// 9.0, sections 9.7.14 (mma) and 9.7.15 (wgmma).
#pragma once

#include <cstdint>

#include "core/base/dtype.h"
#include "core/base/math.h"
#include "core/ops/attention_cuda.cuh"
#include "core/ops/rows_cuda.cuh"

namespace castor::cuda {

inline constexpr float kInfinity = __builtin_inff();

/// How the matrix instructions call a type.
template <class T>
struct OperandName;
template <>
struct OperandName<BFloat16> {
  static constexpr char kText[] = ".bf16";
};
template <>
struct OperandName<Half> {
  static constexpr char kText[] = ".f16";
};

__device__ inline std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

/// Numbers that all these kernels take.
struct AttentionSizes {
  int queries, keys, heads, group;  ///< group: query heads of one key head
  int shift;                        ///< keys - queries: query i sees keys up to i + shift under a causal cut
  float scale, scale_log2;          ///< scores times this are natural exponents, exponents of 2
  bool is_causal;

  AttentionSizes() = default;
  template <class Args>
  explicit AttentionSizes(const Args& args)
      : queries(static_cast<int>(args.q.size[1])),
        keys(static_cast<int>(args.k.size[1])),
        heads(static_cast<int>(args.q.size[2])),
        group(static_cast<int>(args.q.size[2] / args.k.size[2])),
        shift(keys - queries),
        scale(static_cast<float>(args.scale)),
        scale_log2(scale * math::kLog2E),
        is_causal(args.causal) {}

  __host__ __device__ int visible_keys(int query) const {
    const int visible = is_causal ? query + shift + 1 : keys;
    return visible < 0 ? 0 : visible < keys ? visible : keys;
  }
  /// The first query that sees a key; `queries` or more if none does.
  __host__ __device__ int first_query(int key) const { return is_causal && key > shift ? key - shift : 0; }
};

/// Running maximum and sum of a thread's two rows.
struct RunningSoftmax {
  float high[2] = {-kInfinity, -kInfinity}, sum[2] = {0, 0};

  /// Scores become probabilities relative to the new maximum; `shrink` is what earlier sums are to be multiplied by.
  template <int kAccumulators>
  __device__ void add(float (&s)[kAccumulators], float scale_log2, float (&shrink)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float most = high[h];
#pragma unroll
      for (int i = 2 * h; i < kAccumulators; i += 4) most = fmaxf(most, fmaxf(s[i], s[i + 1]));
      most = fmaxf(most, __shfl_xor_sync(0xFFFFFFFFu, most, 1));
      most = fmaxf(most, __shfl_xor_sync(0xFFFFFFFFu, most, 2));
      const float base = most == -kInfinity ? 0.0f : most * scale_log2;
      shrink[h] = exp2_16(fmaf(high[h], scale_log2, -base));
      high[h] = most;
      float total = sum[h] * shrink[h];
#pragma unroll
      for (int i = 2 * h; i < kAccumulators; i += 4) {
        s[i] = exp2_16(fmaf(s[i], scale_log2, -base));
        s[i + 1] = exp2_16(fmaf(s[i + 1], scale_log2, -base));
        total += s[i] + s[i + 1];
      }
      sum[h] = total;
    }
  }

  /// What the sums of a row's values are to be multiplied by in the end, 0 for a row without keys; and the row's
  /// logsumexp.
  __device__ void finish(float scale, float (&factor)[2], float (&lse)[2]) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float total = sum[h];
      total += __shfl_xor_sync(0xFFFFFFFFu, total, 1);
      total += __shfl_xor_sync(0xFFFFFFFFu, total, 2);
      factor[h] = total == 0.0f ? 0.0f : 1.0f / total;
      lse[h] = total == 0.0f ? -kInfinity : fmaf(high[h], scale, math::log(total));
    }
  }
};

/// Scores of keys from `first` on that a row does not see become `nothing`. `limit`: the last key that each row sees.
template <int kAccumulators>
__device__ void mask_keys(float (&s)[kAccumulators], int first, int column, const int (&limit)[2],
                          float nothing = -kInfinity) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int last = limit[h] - first - column;
#pragma unroll
    for (int i = 2 * h; i < kAccumulators; i += 4) {
      if (i / 4 * 8 > last) s[i] = nothing;
      if (i / 4 * 8 + 1 > last) s[i + 1] = nothing;
    }
  }
}

/// Two numbers rounded to 16 bits each, the first in the low half.
template <class T>
__device__ std::uint32_t pack(float low, float high) {
  std::uint32_t word;
  asm("cvt.rn%3x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low), "C"(OperandName<T>::kText));
  return word;
}

/// Accumulators of 16 kSteps columns as the left operand of the next product.
template <class T, int kSteps>
__device__ void as_operand(const float (&c)[kSteps * 8], std::uint32_t (&a)[kSteps][4]) {
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[step][i] = pack<T>(c[8 * step + 2 * i], c[8 * step + 2 * i + 1]);
  }
}

/// Four words of each of four neighbouring lanes, transposed: word i of lane t becomes word t of lane i.
__device__ inline void transpose_quad(std::uint32_t& a, std::uint32_t& b, std::uint32_t& c, std::uint32_t& d) {
  constexpr unsigned kAll = 0xFFFFFFFFu;
  const bool is_odd = threadIdx.x & 1, is_high = threadIdx.x & 2;
  const std::uint32_t ab = __shfl_xor_sync(kAll, is_odd ? a : b, 1), cd = __shfl_xor_sync(kAll, is_odd ? c : d, 1);
  (is_odd ? a : b) = ab;
  (is_odd ? c : d) = cd;
  const std::uint32_t ac = __shfl_xor_sync(kAll, is_high ? a : c, 2), bd = __shfl_xor_sync(kAll, is_high ? b : d, 2);
  (is_high ? a : c) = ac;
  (is_high ? b : d) = bd;
}

/// Writes this thread's share of accumulators of kDim columns, of which `dim` exist, times a factor for each of its two
/// rows, in words of 16 bytes. rows[h] is where row h begins, or nullptr.
template <class T, int kDim>
__device__ void store_accumulators(const float (&c)[kDim / 2], const float (&factor)[2], T* const (&rows)[2],
                                   int dim = kDim) {
  const int lane = static_cast<int>(threadIdx.x % 4);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
#pragma unroll
    for (int j = 0; j < kDim / 8; j += 4) {
      std::uint32_t word[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        word[i] = pack<T>(c[4 * (j + i) + 2 * h] * factor[h], c[4 * (j + i) + 2 * h + 1] * factor[h]);
      transpose_quad(word[0], word[1], word[2], word[3]);
      if (rows[h] != nullptr && (j + lane) * 8 < dim)
        *reinterpret_cast<uint4*>(rows[h] + (j + lane) * 8) = make_uint4(word[0], word[1], word[2], word[3]);
    }
  }
}

}  // namespace castor::cuda
