// SGD, Adam and Lamb on CUDA, and the sums of squares: optim_element.h over the walk of optim_cuda.cuh, with the CPU's
// bits.
#include <vector>

#include "core/ops/optim_cuda.cuh"

namespace castor {
namespace {

// A warp a segment: its lanes fetch 128 values at a time, and every lane adds them one after the other. What bounds it
// is the chain of additions, so the fetches and shuffles of a full batch are unrolled out of its way.
__global__ void fold_kernel(const double* values, const std::int64_t* begins, double* out, std::int64_t segments) {
  constexpr int kAhead = 4;
  const std::int64_t segment = (blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x) / 32;
  if (segment >= segments) return;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const std::int64_t begin = begins[segment], end = begins[segment + 1];
  double sum = 0, next[kAhead];
  const auto fetch = [&](std::int64_t at) {
#pragma unroll
    for (int k = 0; k < kAhead; ++k) next[k] = at + 32 * k + lane < end ? values[at + 32 * k + lane] : 0;
  };
  fetch(begin);
  for (std::int64_t at = begin; at < end; at += 32 * kAhead) {
    double own[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) own[k] = next[k];
    fetch(at + 32 * kAhead);
    if (at + 32 * kAhead <= end) {
#pragma unroll
      for (int i = 0; i < 32 * kAhead; ++i) sum += __shfl_sync(0xffffffff, own[i / 32], i % 32);
    } else {
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        const std::int64_t left = end - at - 32 * k;
        for (int i = 0; i < 32 && i < left; ++i) sum += __shfl_sync(0xffffffff, own[k], i);
      }
    }
  }
  if (lane == 0) out[segment] = sum;
}

/// A range whose squares are summed by blocks of kStatisticsBlock.
struct SquaresRange {
  const void* data;
  DType dtype;
  double* sums;
  std::int64_t count;
  unsigned first_block;  ///< of the grid's
};

constexpr int kChains = 8;                      // neighbouring lanes of the CPU's fold that a thread has
constexpr int kSharers = kFoldLanes / kChains;  // threads of a block of elements
constexpr int kSharedBlocks = cuda::kStepThreads / kSharers;

/// The sum of squares of a block of elements, in each of its threads. `from` is the thread's first element, of which
/// and behind which the range has `left`. A thread reads its chains as words of 16 bytes, many of them at a time.
template <class T>
__device__ float chain_squares(const T* from, std::int64_t left) {
  constexpr int kSteps = static_cast<int>(kStatisticsBlock) / kFoldLanes;
  constexpr int kWord = 16 / static_cast<int>(sizeof(T)), kAtOnce = sizeof(T) == 4 ? 4 : 8;
  float sum[kChains] = {};
  const auto add = [&](int chain, T element) {
    const float x = cuda::read(element);
    sum[chain] = math::fma(x, x, sum[chain]);
  };
  if (left >= kFoldLanes * (kSteps - 1) + kChains && reinterpret_cast<std::uintptr_t>(from) % 16 == 0) {
#pragma unroll kAtOnce
    for (int k = 0; k < kSteps; ++k) {
#pragma unroll
      for (int w = 0; w < kChains; w += kWord) {
        const auto word = cuda::load_pack<kWord>(from + k * kFoldLanes + w, true);
        for (int e = 0; e < kWord; ++e) add(w + e, word.value[e]);
      }
    }
  } else {
#pragma unroll 1
    for (int k = 0; k < kSteps; ++k) {
#pragma unroll
      for (int e = 0; e < kChains; ++e) {
        if (k * kFoldLanes + e < left) add(e, from[k * kFoldLanes + e]);
      }
    }
  }
  // The chains meet as fold_lanes joins lanes: 16 and 8 apart are other threads', the nearer ones this thread's.
  for (int width = kSharers / 2; width > 0; width /= 2) {
    for (float& own : sum) own += __shfl_xor_sync(0xffffffff, own, width);
  }
  for (int width = kChains / 2; width > 0; width /= 2) {
    for (int e = 0; e < width; ++e) sum[e] += sum[e + width];
  }
  return sum[0];
}

/// chain_squares of the thread's block, whatever the range's dtype.
__device__ float own_squares(const SquaresRange& range, std::int64_t first) {
  const std::int64_t left = range.count - first;
  if (range.dtype == DType::f32) return chain_squares(static_cast<const float*>(range.data) + first, left);
  if (range.dtype == DType::bf16) return chain_squares(static_cast<const BFloat16*>(range.data) + first, left);
  return chain_squares(static_cast<const Half*>(range.data) + first, left);
}

template <int kMost>
__global__ void __launch_bounds__(cuda::kStepThreads)
    range_squares(const __grid_constant__ cuda::LaunchTable<SquaresRange, kMost> table) {
  const SquaresRange& range = table.own();
  const auto sharer = threadIdx.x % kSharers;
  const std::int64_t block =
      static_cast<std::int64_t>(blockIdx.x - range.first_block) * kSharedBlocks + threadIdx.x / kSharers;
  const float sum = own_squares(range, block * kStatisticsBlock + sharer * kChains);
  if (sharer == 0 && block * kStatisticsBlock < range.count) range.sums[block] = static_cast<double>(sum);
}

/// One launch for all of `pairs`, at most kMost.
template <int kMost>
void sum_squares_together(const Cuda& cuda, std::span<const BlockSquaresArgs::Pair> pairs) {
  cuda::LaunchTable<SquaresRange, kMost> table;
  table.count = 0;
  unsigned blocks = 0;
  for (const auto& [x, sums] : pairs) {
    table.ranges[table.count++] = {x.data, x.dtype, sums.as<double>(), x.numel(), blocks};
    blocks += static_cast<unsigned>((sums.numel() + kSharedBlocks - 1) / kSharedBlocks);
  }
  if (blocks > 0) range_squares<kMost><<<blocks, cuda::kStepThreads, 0, stream_of(cuda)>>>(table);
}

struct AdamUpdate {
  AdamScalars s;
  bool keeps_largest;
  __device__ void operator()(std::int64_t, float g, float (&x)[4]) const {
    const optim::AdamElement e = optim::adam_element(s, g, x[0], x[1], x[2], x[3], keeps_largest);
    x[0] = e.parameter;
    x[1] = e.mean;
    x[2] = e.square;
    x[3] = e.largest;
  }
};

struct SgdUpdate {
  SgdScalars s;
  bool has_buffer;
  __device__ void operator()(std::int64_t, float g, float (&x)[2]) const {
    const optim::SgdElement e = optim::sgd_element(s, g, x[0], x[1], has_buffer);
    x[0] = e.parameter;
    x[1] = e.momentum;
  }
};

struct LambUpdate {
  LambScalars s;
  float step_size;
  __device__ void operator()(std::int64_t, float g, float (&x)[3]) const {
    const optim::LambElement e = optim::lamb_element(s, g, x[0], x[1], x[2]);
    x[0] = math::fma(-step_size, e.update, x[0]);
    x[1] = e.mean;
    x[2] = e.square;
  }
};

struct LambDirection {
  LambScalars s;
  cuda::AnyGradient gradient;
  const float *p, *mean, *square;
  __device__ float operator()(std::int64_t i) const {
    return optim::lamb_element(s, gradient(i), p[i], mean[i], square[i]).update;
  }
};

}  // namespace

void run(const Cuda& cuda, const BlockSquaresArgs& args) {
  for (auto pairs = args.pairs; !pairs.empty();) {
    const auto now = pairs.first(std::min<std::size_t>(pairs.size(), cuda::kMostTogether));
    now.size() == 1 ? sum_squares_together<1>(cuda, now) : sum_squares_together<cuda::kMostTogether>(cuda, now);
    pairs = pairs.subspan(now.size());
  }
  check_cuda(cudaGetLastError(), BlockSquaresArgs::kName, cuda.device);
}

void run(const Cuda& cuda, const FoldSegmentsArgs& args) {
  constexpr int kThreads = 128;
  const std::int64_t segments = args.out.numel();
  const auto blocks = static_cast<unsigned>((32 * segments + kThreads - 1) / kThreads);
  fold_kernel<<<blocks, kThreads, 0, stream_of(cuda)>>>(args.values.as<double>(), args.begins.as<std::int64_t>(),
                                                        args.out.as<double>(), segments);
  check_cuda(cudaGetLastError(), FoldSegmentsArgs::kName, cuda.device);
}

void run(const Cuda& cuda, const AdamArgs& args) {
  std::vector<cuda::StepJob<4, AdamUpdate>> jobs;
  for (const AdamArgs::Range& range : args.ranges) {
    jobs.push_back({{range.scalars, range.max_exp_avg_sq.defined()},
                    {{range.parameter.as<float>(), range.exp_avg.as<float>(), range.exp_avg_sq.as<float>(),
                      range.max_exp_avg_sq.as<float>()}},
                    range.gradient,
                    range.copy,
                    range.parameter.numel()});
  }
  cuda::step_all(cuda, AdamArgs::kName, jobs);
}

void run(const Cuda& cuda, const SgdArgs& args) {
  std::vector<cuda::StepJob<2, SgdUpdate>> jobs;
  for (const SgdArgs::Range& range : args.ranges) {
    jobs.push_back({{range.scalars, range.momentum_buffer.defined()},
                    {{range.parameter.as<float>(), range.momentum_buffer.as<float>()}},
                    range.gradient,
                    range.copy,
                    range.parameter.numel()});
  }
  cuda::step_all(cuda, SgdArgs::kName, jobs);
}

void run(const Cuda& cuda, const LambSquaresArgs& args) {
  const std::int64_t count = args.parameter.numel();
  const BlockSquaresArgs::Pair parameter{args.parameter, args.parameter_sums};
  run(cuda, BlockSquaresArgs{{&parameter, 1}});
  const LambDirection direction{args.scalars, cuda::AnyGradient(args.gradient), args.parameter.as<float>(),
                                args.exp_avg.as<float>(), args.exp_avg_sq.as<float>()};
  cuda::sum_blocks_of(cuda, LambSquaresArgs::kName, direction, args.update_sums, count);
}

void run(const Cuda& cuda, const LambArgs& args) {
  const cuda::States<3> states{{args.parameter.as<float>(), args.exp_avg.as<float>(), args.exp_avg_sq.as<float>()}};
  cuda::step(cuda, LambArgs::kName, LambUpdate{args.scalars, args.step_size}, states, args.gradient, args.copy,
             args.parameter.numel());
}

}  // namespace castor
