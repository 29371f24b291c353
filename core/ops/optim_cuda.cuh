// How optimizer kernels on CUDA walk memory, which binds them: four elements a thread, as words of 16 bytes (8 for 16
// bits) where all addresses allow, each stream read and written once. Statistics are folded by a warp a block of 1024,
// in the CPU's 32 chains. Several ranges share a launch: each of its blocks looks its range up in a table among the
// kernel's arguments.
#pragma once

#include <span>
#include <vector>

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

/// One range of a step. `update`(index, gradient, x) changes x, the states of one element; update.begin(), where there
/// is one, comes first, once a thread.
template <int N, class Update>
struct StepJob {
  Update update;
  States<N> states;
  View gradient, copy;  ///< f32, bf16 or f16; either may be absent
  std::int64_t count;
};

/// A job as its kernel sees it.
template <class G, class C, int N, class Update>
struct StepRange {
  Update update;
  States<N> states;
  const G* gradient;
  C* copy;
  std::int64_t count;
  unsigned first_block;  ///< of the grid's
  bool is_wide;          ///< all addresses allow words of four elements
};

/// What one launch does: up to kMost jobs, which share its blocks.
template <class Range, int kMost>
struct LaunchTable {
  Range ranges[kMost];
  int count;

  /// Whose block this is.
  __device__ const Range& own() const {
    int low = 0, high = count;  // the range is in [low, high)
    while (kMost > 1 && high - low > 1) {
      const int middle = (low + high) / 2;
      if (ranges[middle].first_block <= blockIdx.x) {
        low = middle;
      } else {
        high = middle;
      }
    }
    return ranges[low];
  }
};

/// Jobs that one launch may take: their table is one of its arguments, of which there may be 32 KiB.
inline constexpr int kMostTogether = 128;

template <class G, class C, int N, class Update, int kMost>
__global__ void __launch_bounds__(kStepThreads)
    step_kernel(const __grid_constant__ LaunchTable<StepRange<G, C, N, Update>, kMost> table) {
  constexpr int kWidth = 4;
  const StepRange<G, C, N, Update>& range = table.own();
  const std::int64_t first =
      (static_cast<std::int64_t>(blockIdx.x - range.first_block) * kStepThreads + threadIdx.x) * kWidth;
  const std::int64_t count = range.count;
  if (first >= count) return;
  const States<N> states = range.states;
  const G* const gradient = range.gradient;
  C* const copy = range.copy;
  Update update = range.update;
  if constexpr (requires { update.begin(); }) update.begin();
  if (range.is_wide && first + kWidth <= count) {
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

template <int N, class Update>
bool is_wide(const StepJob<N, Update>& job) {
  const auto fits = [](const void* data, std::size_t bytes) {
    return reinterpret_cast<std::uintptr_t>(data) % bytes == 0;
  };
  bool all = fits(job.gradient.data, 4 * dtype_size(job.gradient.dtype)) &&
             fits(job.copy.data, 4 * dtype_size(job.copy.dtype));
  for (const float* state : job.states.at) all = all && fits(state, 16);
  return all;
}

/// One launch for the first jobs of `jobs` that have these dtypes, at most kMost of them; the others stay.
template <class G, class C, int kMost, int N, class Update>
void step_together(const Cuda& cuda, std::vector<const StepJob<N, Update>*>& jobs, DType gradient, DType copy) {
  LaunchTable<StepRange<G, C, N, Update>, kMost> table;
  table.count = 0;
  unsigned blocks = 0;
  std::erase_if(jobs, [&](const StepJob<N, Update>* job) {
    if (table.count == kMost || job->gradient.dtype != gradient || job->copy.dtype != copy) return false;
    table.ranges[table.count++] = {job->update,
                                   job->states,
                                   static_cast<const G*>(job->gradient.template as<G>()),
                                   job->copy.template as<C>(),
                                   job->count,
                                   blocks,
                                   is_wide(*job)};
    blocks += static_cast<unsigned>((job->count + 4 * kStepThreads - 1) / (4 * kStepThreads));
    return true;
  });
  step_kernel<G, C, N, Update, kMost><<<blocks, kStepThreads, 0, stream_of(cuda)>>>(table);
}

/// Launches the jobs, up to kMost at a time.
template <int kMost, int N, class Update>
void step_all(const Cuda& cuda, const char* op, std::span<const StepJob<N, Update>> all) {
  std::vector<const StepJob<N, Update>*> jobs;
  for (const StepJob<N, Update>& job : all) {
    if (job.count > 0) jobs.push_back(&job);
  }
  while (!jobs.empty()) {
    const View &gradient = jobs.front()->gradient, &copy = jobs.front()->copy;
    visit_training_float(gradient.defined() ? gradient.dtype : DType::f32, op, [&](auto g_tag) {
      visit_training_float(copy.defined() ? copy.dtype : DType::f32, op, [&](auto c_tag) {
        using G = typename decltype(g_tag)::type;
        using C = typename decltype(c_tag)::type;
        step_together<G, C, kMost>(cuda, jobs, gradient.dtype, copy.dtype);
      });
    });
  }
  check_cuda(cudaGetLastError(), op, cuda.device);
}
template <int N, class Update>
void step_all(const Cuda& cuda, const char* op, const std::vector<StepJob<N, Update>>& jobs) {
  const std::span<const StepJob<N, Update>> all(jobs);
  jobs.size() == 1 ? step_all<1>(cuda, op, all) : step_all<kMostTogether>(cuda, op, all);
}

/// The same for one range.
template <int N, class Update>
void step(const Cuda& cuda, const char* op, const Update& update, const States<N>& states, const View& gradient,
          const View& copy, std::int64_t count) {
  const StepJob<N, Update> job{update, states, gradient, copy, count};
  step_all<1>(cuda, op, std::span<const StepJob<N, Update>>(&job, 1));
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

/// sums[block] = the sum of value(i)^2 over each block of `count` elements, by a warp.
template <class Value>
__global__ void __launch_bounds__(kStepThreads) block_squares(const Value value, double* sums, std::int64_t count) {
  const std::int64_t block = (static_cast<std::int64_t>(blockIdx.x) * kStepThreads + threadIdx.x) / 32;
  const std::int64_t begin = block * kStatisticsBlock;
  if (begin >= count) return;
  const std::int64_t end = begin + kStatisticsBlock < count ? begin + kStatisticsBlock : count;
  const float sum = sum_squares_of(begin, end, value);
  if (threadIdx.x % 32 == 0) sums[block] = static_cast<double>(sum);
}

template <class Value>
void sum_blocks_of(const Cuda& cuda, const char* op, const Value& value, const View& sums, std::int64_t count) {
  if (count == 0) return;
  constexpr std::int64_t kTogether = kStepThreads / 32;
  const std::int64_t warps = (count + kStatisticsBlock - 1) / kStatisticsBlock;
  block_squares<<<static_cast<unsigned>((warps + kTogether - 1) / kTogether), kStepThreads, 0, stream_of(cuda)>>>(
      value, sums.as<double>(), count);
  check_cuda(cudaGetLastError(), op, cuda.device);
}

/// A gradient whose dtype is told at run time, for statistics; zeros without data.
struct AnyGradient {
  const void* data;
  DType dtype;
  AnyGradient() = default;
  explicit AnyGradient(const View& view) : data(view.data), dtype(view.dtype) {}
  __device__ float operator()(std::int64_t i) const {
    if (data == nullptr) return 0;
    if (dtype == DType::f32) return static_cast<const float*>(data)[i];
    if (dtype == DType::bf16) return read(static_cast<const BFloat16*>(data)[i]);
    return read(static_cast<const Half*>(data)[i]);
  }
};

}  // namespace castor::cuda
