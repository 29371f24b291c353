// How optimizer kernels on CUDA walk memory, which binds them: four elements a thread, as words of 16 bytes (8 for 16
// bits) where all addresses allow, each stream read and written once. Statistics are folded by a warp a block of 1024,
// in the CPU's 32 chains.
#pragma once

#include <initializer_list>

#include "core/ops/map_cuda.cuh"
#include "core/ops/optim_element.h"
#include "core/ops/rows_cuda.cuh"

namespace castor::cuda {

inline constexpr int kStepThreads = 256;

/// f32 arrays that a step reads and writes, the parameter first; nullptr where there is none.
template <int N>
struct States {
  float* at[N];
};

/// update(index, gradient, x) changes x, the states of one element. Without a copy its type C is float.
template <class G, class C, int N, class Update>
__global__ void __launch_bounds__(kStepThreads)
    step_kernel(const Update update, const States<N> states, const G* gradient, C* copy, std::int64_t count,
                bool is_wide) {
  constexpr int kWidth = 4;
  const std::int64_t first = (static_cast<std::int64_t>(blockIdx.x) * kStepThreads + threadIdx.x) * kWidth;
  if (first >= count) return;
  if (is_wide && first + kWidth <= count) {
    Pack<float, kWidth> packs[N];
    Pack<G, kWidth> gradients{};
    for (int k = 0; k < N; ++k) {
      if (states.at[k] != nullptr) packs[k] = load_pack<kWidth>(states.at[k] + first, true);
    }
    if (gradient != nullptr) gradients = load_pack<kWidth>(gradient + first, true);
    Pack<C, kWidth> copies;
    for (int i = 0; i < kWidth; ++i) {
      float x[N];
      for (int k = 0; k < N; ++k) x[k] = packs[k].value[i];
      update(first + i, read(gradients.value[i]), x);
      for (int k = 0; k < N; ++k) packs[k].value[i] = x[k];
      copies.value[i] = write<C>(x[0]);
    }
    for (int k = 0; k < N; ++k) {
      if (states.at[k] != nullptr) store_pack(states.at[k] + first, packs[k]);
    }
    if (copy != nullptr) store_pack(copy + first, copies);
    return;
  }
#pragma unroll 1
  for (std::int64_t i = first; i < first + kWidth && i < count; ++i) {
    float x[N];
    for (int k = 0; k < N; ++k) x[k] = states.at[k] != nullptr ? states.at[k][i] : 0.0f;
    update(i, gradient != nullptr ? read(gradient[i]) : 0.0f, x);
    for (int k = 0; k < N; ++k) {
      if (states.at[k] != nullptr) states.at[k][i] = x[k];
    }
    if (copy != nullptr) copy[i] = write<C>(x[0]);
  }
}

/// Launches `update` over a range, for the dtypes of gradient and copy, either of which may be absent.
template <int N, class Update>
void step(const Cuda& cuda, const char* op, const Update& update, const States<N>& states, const View& gradient,
          const View& copy, std::int64_t count) {
  if (count == 0) return;
  const auto fits = [](const void* data, std::size_t bytes) {
    return reinterpret_cast<std::uintptr_t>(data) % bytes == 0;
  };
  bool is_wide = fits(gradient.data, 4 * dtype_size(gradient.dtype)) && fits(copy.data, 4 * dtype_size(copy.dtype));
  for (const float* state : states.at) is_wide = is_wide && fits(state, 16);
  const auto blocks = static_cast<unsigned>((count + 4 * kStepThreads - 1) / (4 * kStepThreads));
  visit_training_float(gradient.defined() ? gradient.dtype : DType::f32, op, [&](auto g_tag) {
    visit_training_float(copy.defined() ? copy.dtype : DType::f32, op, [&](auto c_tag) {
      using G = typename decltype(g_tag)::type;
      using C = typename decltype(c_tag)::type;
      step_kernel<G, C, N><<<blocks, kStepThreads, 0, stream_of(cuda)>>>(
          update, states, static_cast<const G*>(gradient.as<G>()), copy.as<C>(), count, is_wide);
    });
  });
  check_cuda(cudaGetLastError(), op, cuda.device);
}

/// The sum of squares of value(i) for i in [begin, end), by a warp, as the CPU folds it.
template <class Value>
__device__ float sum_squares_of(std::int64_t begin, std::int64_t end, Value value) {
  float sum = 0;
  for (std::int64_t i = begin + threadIdx.x % 32; i < end; i += 32) {
    const float x = value(i);
    sum = math::fma(x, x, sum);
  }
  return join_lanes(sum, AddLanes{});
}

/// sums[block] = the sum of value(i)^2 over block number `block`, a warp a block.
template <class Value>
__global__ void __launch_bounds__(kStepThreads) block_squares(const Value value, double* sums, std::int64_t count) {
  const std::int64_t block = (static_cast<std::int64_t>(blockIdx.x) * kStepThreads + threadIdx.x) / 32;
  const std::int64_t begin = block * kStatisticsBlock;
  if (begin >= count) return;
  const std::int64_t end = begin + kStatisticsBlock < count ? begin + kStatisticsBlock : count;
  const float sum = sum_squares_of(begin, end, value);
  if (threadIdx.x % 32 == 0) sums[block] = static_cast<double>(sum);
}

/// Launches block_squares.
template <class Value>
void sum_blocks_of(const Cuda& cuda, const char* op, const Value& value, const View& sums, std::int64_t count) {
  if (count == 0) return;
  const std::int64_t warps = (count + kStatisticsBlock - 1) / kStatisticsBlock, together = kStepThreads / 32;
  block_squares<<<static_cast<unsigned>((warps + together - 1) / together), kStepThreads, 0, stream_of(cuda)>>>(
      value, sums.as<double>(), count);
  check_cuda(cudaGetLastError(), op, cuda.device);
}

/// A gradient whose dtype is told at run time, for statistics; zeros without data.
struct AnyGradient {
  const void* data;
  DType dtype;
  explicit AnyGradient(const View& view) : data(view.data), dtype(view.dtype) {}
  __device__ float operator()(std::int64_t i) const {
    if (data == nullptr) return 0;
    if (dtype == DType::f32) return static_cast<const float*>(data)[i];
    if (dtype == DType::bf16) return read(static_cast<const BFloat16*>(data)[i]);
    return read(static_cast<const Half*>(data)[i]);
  }
};

}  // namespace castor::cuda
