// SGD, Adam and Lamb on CUDA, the sums of squares and the norm's limit: optim_element.h over the walk of
// optim_cuda.cuh, with the CPU's bits.
#include <vector>

#include "core/ops/optim_cuda.cuh"

namespace castor {
namespace {

__global__ void __launch_bounds__(cuda::kTeamThreads)
    fold_kernel(const double* values, const std::int64_t* begins, double* out) {
  const cuda::RowTeam team;
  const std::int64_t begin = begins[team.row];
  const double sum =
      cuda::sum_row<double>(team, begins[team.row + 1] - begin, [&](int, std::int64_t i) { return values[begin + i]; });
  if (threadIdx.x == 0 && threadIdx.y == 0) out[team.row] = sum;
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

// A thread: there are as many numbers as a model has parameters, in order, and the next ones are on their way.
__global__ void norm_limit_kernel(const double* squares, std::int64_t count, double scale, double max_norm,
                                  double* factor) {
  constexpr int kAhead = 16;
  double sum = 0;
  std::int64_t at = 0;
  for (; at + kAhead <= count; at += kAhead) {
    double next[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) next[k] = squares[at + k];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) sum += next[k];
  }
  for (; at < count; ++at) sum += squares[at];
  *factor = optim::norm_limit(sum, scale, max_norm);
}

struct AdamUpdate {
  AdamScalars s;
  const AdamScalars* place;
  const double* factor;
  bool keeps_largest;
  __device__ void begin() { s = optim::with_factor(s, place, factor); }
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
  const double* factor;
  bool has_buffer;
  __device__ void begin() { s = optim::with_factor(s, factor); }
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
  fold_kernel<<<static_cast<unsigned>(args.out.numel()), dim3(32, cuda::kMostWarps), 0, stream_of(cuda)>>>(
      args.values.as<double>(), args.begins.as<std::int64_t>(), args.out.as<double>());
  check_cuda(cudaGetLastError(), FoldSegmentsArgs::kName, cuda.device);
}

void run(const Cuda& cuda, const NormLimitArgs& args) {
  norm_limit_kernel<<<1, 1, 0, stream_of(cuda)>>>(args.squares.as<double>(), args.squares.numel(), args.scale,
                                                  args.max_norm, args.factor.as<double>());
  check_cuda(cudaGetLastError(), NormLimitArgs::kName, cuda.device);
}

void run(const Cuda& cuda, const AdamArgs& args) {
  std::vector<cuda::StepJob<4, AdamUpdate>> jobs;
  for (const AdamArgs::Range& range : args.ranges) {
    jobs.push_back(
        {{range.scalars, range.place.as<const AdamScalars>(), args.factor.as<double>(), range.max_exp_avg_sq.defined()},
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
    jobs.push_back({{range.scalars, args.factor.as<double>(), range.momentum_buffer.defined()},
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
