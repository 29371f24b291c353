// Cross entropy on CUDA. A team of warps owns a row; each warp reads chunks of 1024 logits, keeps their maximum and sum
// of exponentials, and the chunks meet in f64, lane by lane. The gradient is made in a second walk over the row, which
// the second-level cache still has. Long rows of 16 bits, which a language model has, go another way
// (cross_entropy_long_cuda.cu).
//
// Delicate: nobody can throw here, so a target out of range gives its row a loss and a gradient of NaN. A chunk of
// -infinity only must not be subtracted from itself.
#include <cmath>

#include "core/ops/cross_entropy_cuda.cuh"

namespace castor {
namespace {

using cuda::Computed;
using cuda::CrossEntropyRows;
using cuda::RowTeam;
using cuda::ShiftedExp;
using cuda::Targets;
using cuda::visit_float;

constexpr int kThreads = 1024;              // of the kernels with one block
constexpr std::int64_t kMostChunks = 2048;  // whose numbers fit into shared memory

/// The sum of `value` over a block of kThreads, in thread 0: halves onto halves.
template <class C>
__device__ C sum_threads(C value) {
  __shared__ C sums[kThreads];
  sums[threadIdx.x] = value;
  __syncthreads();
  for (unsigned width = kThreads / 2; width > 0; width /= 2) {
    if (threadIdx.x < width) sums[threadIdx.x] += sums[threadIdx.x + width];
    __syncthreads();
  }
  return sums[0];
}

__global__ void __launch_bounds__(kThreads)
    count_rows(Targets targets, std::int64_t rows, std::int64_t ignore_index, double* counted) {
  std::int64_t count = 0;
  for (std::int64_t row = threadIdx.x; row < rows; row += kThreads) count += targets[row] != ignore_index ? 1 : 0;
  const std::int64_t total = sum_threads(count);
  if (threadIdx.x == 0) *counted = static_cast<double>(total);
}

template <class C>
__global__ void __launch_bounds__(kThreads)
    join_losses(const double* losses, std::int64_t rows, Reduction reduction, const double* counted, C* loss) {
  if (reduction == Reduction::none) {
    for (std::int64_t row = threadIdx.x; row < rows; row += kThreads) loss[row] = static_cast<C>(losses[row]);
    return;
  }
  double sum = 0;
  for (std::int64_t row = threadIdx.x; row < rows; row += kThreads) sum += losses[row];
  double total = sum_threads(sum);
  if (threadIdx.x != 0) return;
  if (reduction == Reduction::mean) total = *counted > 0 ? total / *counted : 0.0;
  *loss = static_cast<C>(total);
}

template <class T>
__device__ void fill_row(const RowTeam& team, T* gradient, std::int64_t n, T value) {
  if (gradient != nullptr) team.for_row(n, [&](int, std::int64_t i) { gradient[i] = value; });
}

/// What a chunk of 1024 logits adds to its row: what its exponentials are relative to, their sum, the sum of its
/// logits.
struct Chunk {
  double shift, sum, total;
};

template <class T, int V>
__device__ Chunk read_chunk(const RowTeam& team, const T* x, std::int64_t begin, std::int64_t n, bool needs_total) {
  using C = Computed<T>;
  const C lowest = -std::numeric_limits<C>::infinity();
  C held[cuda::kPackSteps<V>][V];
  C max = lowest, sum = C(0), total = C(0);
#pragma unroll
  for (auto& pack : held) {
    for (C& value : pack) value = lowest;  // what lies beyond the row counts for nothing
  }
  cuda::for_packs<V>(team, begin, n, [&](int k, std::int64_t i) {
    const auto pack = cuda::numbers(cuda::pack_at<V>(x + i));
    for (int e = 0; e < V; ++e) held[k][e] = pack.value[e];
  });
#pragma unroll
  for (const auto& pack : held) {
    for (const C value : pack) max = larger(max, value);
  }
  max = cuda::join_lanes(max, cuda::LargerLane{});
  const C shift = max == lowest ? C(0) : max;
  const ShiftedExp<T> exp(shift);
#pragma unroll
  for (const auto& pack : held) {
    for (const C value : pack) sum += exp(value);
  }
  sum = cuda::join_lanes(sum, cuda::AddLanes{});
  if (needs_total) {
    cuda::for_packs<V>(team, begin, n, [&](int k, std::int64_t) {
      for (int e = 0; e < V; ++e) total += held[k][e];
    });
    total = cuda::join_lanes(total, cuda::AddLanes{});
  }
  return {static_cast<double>(shift), static_cast<double>(sum), static_cast<double>(total)};
}

/// V logits are read and written as a word. `gradient` may be x.
template <class T, int V>
__global__ void __launch_bounds__(cuda::kTeamThreads, 2) cross_entropy_rows(const CrossEntropyRows<T> args) {
  using C = Computed<T>;
  const RowTeam team;
  const std::int64_t n = args.classes, row = team.row;
  if (row >= args.rows) return;
  const bool is_first = team.lane == 0 && team.warp == 0;
  const double smoothing = args.smoothing;
  const int chunks = static_cast<int>((n + kSumBlock - 1) / kSumBlock);
  extern __shared__ __align__(16) Chunk shared_chunks[];
  __shared__ double target_logits[cuda::kMostWarps];
  const std::int64_t target = args.targets[row];
  const T* const x = args.logits + row * n;
  T* const gradient = args.gradients != nullptr ? args.gradients + row * n : nullptr;
  if (!args.counts(target)) {
    const double value = args.uncounted(target);
    if (is_first) args.losses[row] = value;
    fill_row(team, gradient, n, store<T>(static_cast<C>(value)));
    return;
  }
  const auto has_target = [&](std::int64_t begin) {  // in a word of this lane
    return target >= begin && target < begin + kSumBlock && (target - begin) / V % 32 == team.lane;
  };

  const int slot = static_cast<int>(threadIdx.z);
  Chunk* const parts = shared_chunks + slot * chunks;
  for (int chunk = team.warp; chunk < chunks; chunk += team.warps) {
    const Chunk part = read_chunk<T, V>(team, x, chunk * kSumBlock, n, smoothing > 0);
    if (team.lane == 0) parts[chunk] = part;
    if (has_target(chunk * kSumBlock)) target_logits[slot] = static_cast<double>(cuda::read(x[target]));
  }
  team.sync();
  const double at_target = target_logits[slot];
  double max = -HUGE_VAL, sum = 0, total = 0;
  for (int chunk = team.lane; chunk < chunks; chunk += 32) max = larger(max, parts[chunk].shift);
  max = cuda::join_lanes(max, cuda::LargerLane{});
  for (int chunk = team.lane; chunk < chunks; chunk += 32) {
    sum += parts[chunk].sum * std::exp(parts[chunk].shift - max);
    total += parts[chunk].total;
  }
  sum = cuda::join_lanes(sum, cuda::AddLanes{});
  total = cuda::join_lanes(total, cuda::AddLanes{});
  const double logsumexp = max + std::log(sum);
  if (is_first) args.losses[row] = args.loss(logsumexp, at_target, total);
  if (gradient == nullptr) return;

  const double factor = args.factor(), spread = smoothing / static_cast<double>(n) * factor;
  const C less = static_cast<C>(spread);
  for (int chunk = team.warp; chunk < chunks; chunk += team.warps) {
    const std::int64_t begin = chunk * kSumBlock;
    // f32 and f64 stay relative to the chunk's maximum, which is exact; 16 bits do not show the difference.
    C shift = static_cast<C>(logsumexp), scale = static_cast<C>(factor);
    if constexpr (std::is_arithmetic_v<T>) {
      shift = static_cast<C>(parts[chunk].shift);
      scale = static_cast<C>(std::exp(parts[chunk].shift - logsumexp) * factor);
    }
    const ShiftedExp<T> exp(shift);
    cuda::for_packs<V>(team, begin, n, [&](int, std::int64_t i) {
      const auto pack = cuda::numbers(cuda::pack_at<V>(x + i));
      C values[V];
      for (int e = 0; e < V; ++e) values[e] = math::fma(exp(pack.value[e]), scale, -less);
      cuda::store_pack(gradient + i, cuda::rounded<T, V>(values));
    });
    if (has_target(begin)) {  // the same thread wrote this element just now
      const double p = std::exp(at_target - logsumexp);
      gradient[target] = store<T>(static_cast<C>(p * factor - spread - (1 - smoothing) * factor));
    }
  }
}

template <class T, int V>
__global__ void __launch_bounds__(256) scale_groups(T* gradient, std::int64_t groups, std::int64_t groups_per_row,
                                                    const Computed<T>* dloss, bool is_by_row, const double* counted) {
  using C = Computed<T>;
  const double divisor = counted != nullptr && *counted > 0 ? *counted : 1;
  if (!is_by_row && static_cast<double>(*dloss) == divisor) return;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t group = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; group < groups;
       group += step) {
    const C factor = static_cast<C>(static_cast<double>(is_by_row ? dloss[group / groups_per_row] : *dloss) / divisor);
    cuda::Pack<T, V> pack = cuda::load_pack<V>(gradient + group * V, true);
    for (int i = 0; i < V; ++i) pack.value[i] = cuda::write<T>(cuda::read(pack.value[i]) * factor);
    cuda::store_pack(gradient + group * V, pack);
  }
}

}  // namespace

void run(const Cuda& cuda, const CrossEntropyArgs& args) {
  const char* op = CrossEntropyArgs::kName;
  const cudaStream_t stream = stream_of(cuda);
  const std::int64_t rows = args.logits.size[0], classes = args.logits.size[1];
  const std::int64_t chunks = (classes + kSumBlock - 1) / kSumBlock;
  if (chunks > kMostChunks) {
    throw ShapeError(cat(op, ": a row on ", cuda.device, " can have ", kMostChunks * kSumBlock, " classes, got ",
                         classes, "; compute it on cpu"));
  }
  const Targets all_targets{args.targets.data, args.targets.dtype == DType::i64};
  const Targets targets{args.targets.as<char>() + args.first_row * (all_targets.is_wide ? 8 : 4), all_targets.is_wide};
  const std::int64_t all_rows = args.targets.size[0];
  double* const counted = args.counted.as<double>();
  double* const all_losses = args.workspace.as<double>();
  if (args.first_row == 0)
    count_rows<<<1, kThreads, 0, stream>>>(all_targets, all_rows, args.options.ignore_index, counted);
  visit_float(args.logits.dtype, op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = Computed<T>;
    if (rows > 0) {
      const CrossEntropyRows<T> operands{args.logits.as<T>(),
                                         targets,
                                         args.gradient.as<T>(),
                                         all_losses + args.first_row,
                                         counted,
                                         rows,
                                         classes,
                                         args.options.ignore_index,
                                         args.options.label_smoothing,
                                         args.gradient_of_mean};
      const bool fits = cuda::rows_fit(classes, {&args.logits, &args.gradient});
      bool is_done = false;
      if constexpr (sizeof(T) == 2)
        is_done = fits && classes >= cuda::kLongRow && cuda::cross_entropy_long_rows(cuda, operands);
      if (!is_done) {
        const cuda::TeamLaunch launch(rows, classes);
        const std::size_t bytes = static_cast<std::size_t>(chunks) * launch.threads.z * sizeof(Chunk);
        const auto run_rows = [&](auto kernel) {
          check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
                     op, cuda.device);
          kernel<<<launch.blocks, launch.threads, bytes, stream>>>(operands);
        };
        fits ? run_rows(cross_entropy_rows<T, cuda::kPackWidth<T>>) : run_rows(cross_entropy_rows<T, 1>);
      }
    }
    if (args.first_row + rows < all_rows) return;
    join_losses<C>
        <<<1, kThreads, 0, stream>>>(all_losses, all_rows, args.options.reduction, counted, args.loss.as<C>());
  });
  check_cuda(cudaGetLastError(), op, cuda.device);
}

void run(const Cuda& cuda, const CrossEntropyScaleArgs& args) {
  const std::int64_t count = args.gradient.numel();
  if (count == 0) return;
  const bool is_by_row = args.dloss.ndim != 0;
  const auto launch = [&](auto tag, auto width) {
    using T = typename decltype(tag)::type;
    constexpr int kWide = decltype(width)::value;
    const std::int64_t groups = count / kWide;
    const auto blocks = static_cast<unsigned>(std::min<std::int64_t>((groups + 255) / 256, 1 << 20));
    scale_groups<T, kWide>
        <<<blocks, 256, 0, stream_of(cuda)>>>(args.gradient.as<T>(), groups, args.gradient.size[1] / kWide,
                                              args.dloss.as<Computed<T>>(), is_by_row, args.counted.as<double>());
  };
  visit_float(args.gradient.dtype, CrossEntropyScaleArgs::kName, [&](auto tag) {
    constexpr int kWide = 16 / static_cast<int>(sizeof(typename decltype(tag)::type));
    const bool fits = (is_by_row ? args.gradient.size[1] : count) % kWide == 0 &&
                      reinterpret_cast<std::uintptr_t>(args.gradient.data) % 16 == 0;
    fits ? launch(tag, std::integral_constant<int, kWide>{}) : launch(tag, std::integral_constant<int, 1>{});
  });
  check_cuda(cudaGetLastError(), CrossEntropyScaleArgs::kName, cuda.device);
}

}  // namespace castor
