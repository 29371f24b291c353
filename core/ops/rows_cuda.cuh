// Folds over rows on CUDA: a warp's 32 lanes are the 32 chains of lane_fold.h, and a team of warps shares a row's
// blocks of 1024, whose sums meet in f64 in order. So a sum over a row has the CPU's bits.
//
// Delicate: a row of at most kHeldElements can be held in registers (one block a warp), which makes one pass over
// memory of several over the row; loops over a block are unrolled, or the array would leave the registers. All threads
// of a team take the same branches around `sync`.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "core/base/dtype.h"
#include "core/base/math.h"
#include "core/device/cuda_runtime.h"
#include "core/ops/lane_fold.h"
#include "core/tensor/tensor.h"

namespace castor::cuda {

inline constexpr int kBlockSteps = static_cast<int>(kSumBlock) / kFoldLanes;  ///< elements of a block in each lane
inline constexpr int kMostWarps = 16;                                         ///< of a team
inline constexpr int kTeamThreads = 32 * kMostWarps;
inline constexpr std::int64_t kHeldElements = kMostWarps * kSumBlock;

/// What elements of type T are computed with.
template <class T>
using Computed = decltype(load(T{}));

/// Calls f(TypeTag<T>{}) for a float dtype; throws DTypeError, naming `op`, for another one.
template <class F>
void visit_float(DType dtype, const char* op, F&& f) {
  dtype == DType::f64 ? f(TypeTag<double>{}) : visit_training_float(dtype, op, f);
}

/// `load` and `store`, by the instructions that convert where there are some: the same bits, but for those of a NaN.
template <class T>
__device__ auto read(T x) {
  if constexpr (std::is_same_v<T, Half>) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
    return value;
  } else {
    return load(x);
  }
}
template <class T, class C>
__device__ T write(C value) {
  if constexpr (std::is_same_v<T, Half>) {
    Half result;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    return result;
  } else {
    return store<T>(value);
  }
}

/// 2^x by the processor's own instruction, exact enough for results of 16 bits; 0 at -infinity.
__device__ inline float exp2_16(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

/// e^x as precise as results of type T show: the processor's own for 16 bits, whose error is 1e-6 there.
template <class T, class C>
__device__ C row_exp(C x) {
  if constexpr (std::is_arithmetic_v<T>) {
    return math::exp(x);
  } else {
    return exp2_16(math::kLog2E * x);
  }
}

/// The warps of one row, as seen by a thread: blockDim is (32, warps of a row, rows of a block), at most kMostWarps
/// warps in all. Where a row has several, all rows of a block take the same steps.
struct RowTeam {
  int lane, warp, warps;
  int slot;  ///< the warp's number in its block
  std::int64_t row;

  __device__ RowTeam()
      : lane(static_cast<int>(threadIdx.x)),
        warp(static_cast<int>(threadIdx.y)),
        warps(static_cast<int>(blockDim.y)),
        slot(static_cast<int>(threadIdx.z * blockDim.y + threadIdx.y)),
        row(static_cast<std::int64_t>(blockIdx.x) * blockDim.z + threadIdx.z) {}

  __device__ void sync() const { warps > 1 ? __syncthreads() : __syncwarp(); }

  /// Calls body(k, i) for the elements i of this thread in the block that starts at `begin`: k counts them.
  template <class Body>
  __device__ void for_block(std::int64_t begin, std::int64_t n, Body body) const {
    const int count = static_cast<int>(n - begin < kSumBlock ? n - begin : kSumBlock);
#pragma unroll
    for (int k = 0; k < kBlockSteps; ++k) {
      if (k * 32 + lane < count) body(k, begin + k * 32 + lane);
    }
  }

  /// for_block over all blocks of this warp.
  template <class Body>
  __device__ void for_row(std::int64_t n, Body body) const {
    for (std::int64_t begin = warp * kSumBlock; begin < n; begin += warps * kSumBlock) for_block(begin, n, body);
  }
};

/// The lanes' numbers joined as fold_lanes joins them; the same result in every lane.
template <class C, class Join>
__device__ C join_lanes(C value, Join join) {
  for (int width = 16; width > 0; width /= 2) value = join(value, __shfl_down_sync(0xFFFFFFFFu, value, width));
  return __shfl_sync(0xFFFFFFFFu, value, 0);
}

struct AddLanes {
  template <class C>
  __device__ C operator()(C a, C b) const {
    return a + b;
  }
};
struct LargerLane {
  template <class C>
  __device__ C operator()(C a, C b) const {
    return larger(a, b);
  }
};

/// sum_blocks of value(k, i) over a row, in every thread of the team.
template <class C, class Value>
__device__ double sum_row(const RowTeam& team, std::int64_t n, Value value) {
  __shared__ double parts[kMostWarps];
  double total = 0;
  for (std::int64_t first = 0; first < n; first += team.warps * kSumBlock) {
    const std::int64_t begin = first + team.warp * kSumBlock;
    C sum = C(0);
    team.for_block(begin, n, [&](int k, std::int64_t i) { sum += value(k, i); });
    const double part = static_cast<double>(join_lanes(sum, AddLanes{}));
    if (team.warps == 1) {
      total += part;
      continue;
    }
    if (team.lane == 0) parts[team.slot] = part;
    __syncthreads();
    for (int w = 0; w < team.warps && first + w * kSumBlock < n; ++w) total += parts[team.slot - team.warp + w];
    __syncthreads();
  }
  return total;
}

/// Two sums in one walk: add(k, i, a, b) adds element i's terms to a and b.
template <class C, class Add>
__device__ SumPair<double> sum_pair_row(const RowTeam& team, std::int64_t n, Add add) {
  __shared__ SumPair<double> parts[kMostWarps];
  SumPair<double> total{0, 0};
  for (std::int64_t first = 0; first < n; first += team.warps * kSumBlock) {
    const std::int64_t begin = first + team.warp * kSumBlock;
    C a = C(0), b = C(0);
    team.for_block(begin, n, [&](int k, std::int64_t i) { add(k, i, a, b); });
    const double part_a = static_cast<double>(join_lanes(a, AddLanes{}));
    const double part_b = static_cast<double>(join_lanes(b, AddLanes{}));
    if (team.warps == 1) {
      total.a += part_a;
      total.b += part_b;
      continue;
    }
    if (team.lane == 0) parts[team.slot] = {part_a, part_b};
    __syncthreads();
    for (int w = 0; w < team.warps && first + w * kSumBlock < n; ++w) {
      total.a += parts[team.slot - team.warp + w].a;
      total.b += parts[team.slot - team.warp + w].b;
    }
    __syncthreads();
  }
  return total;
}

/// The largest value(k, i) of a row, in every thread of the team; NaN if one is NaN.
template <class C, class Value>
__device__ C max_row(const RowTeam& team, std::int64_t n, Value value) {
  __shared__ C parts[kMostWarps];
  C best = -std::numeric_limits<C>::infinity();
  team.for_row(n, [&](int k, std::int64_t i) { best = larger(best, value(k, i)); });
  best = join_lanes(best, LargerLane{});
  if (team.warps == 1) return best;
  if (team.lane == 0) parts[team.slot] = best;
  __syncthreads();
  for (int w = 0; w < team.warps; ++w) best = larger(best, parts[team.slot - team.warp + w]);
  __syncthreads();
  return best;
}

/// How `rows` rows of n elements are given to teams.
struct TeamLaunch {
  dim3 blocks, threads;
  TeamLaunch(std::int64_t rows, std::int64_t n) {
    const auto warps = static_cast<unsigned>(std::clamp<std::int64_t>((n + kSumBlock - 1) / kSumBlock, 1, kMostWarps));
    const unsigned together = warps == 1 ? 8 : 1;
    threads = dim3(32, warps, together);
    blocks = dim3(static_cast<unsigned>((rows + together - 1) / together));
  }
};

/// Rows of a view along its last axis.
inline std::int64_t rows_of(const View& x) {
  std::int64_t rows = 1;
  for (int i = 0; i < x.ndim - 1; ++i) rows *= x.size[i];
  return rows;
}

}  // namespace castor::cuda
