// Layer and rms norm on CUDA. A team of warps a row, which stays in registers between the passes over it, in words of
// 16 bytes where it fits. What bounds it is memory: a team copies its next rows to shared memory while it works on one,
// and keeps its columns of weight and bias in registers. Rows of more than 4096 numbers are not copied ahead; those of
// more than 16384, those that are no multiple of 16 bytes, and f64 go through a kernel of their own.
//
// Delicate: which numbers meet when depends on the shape alone. The warps of one row meet at a barrier of their own.
#include "core/ops/norm.h"
#include "core/ops/row_packs_cuda.cuh"

namespace castor {
namespace {

using cuda::RowTeam;

template <class T>
using Computed = decltype(load(T{}));

constexpr int kThreads = 512, kBlocksAtOnce = 2;           // of a multiprocessor: 64 registers a thread
constexpr std::int64_t kMostBlocks = 132 * kBlocksAtOnce;  // what a large GPU holds at a time
constexpr std::int64_t kMostRows = 1 << 30;                // that are counted in 32 bits
constexpr int kStages = 2;                                 // rows that a team has on their way
constexpr int kShortSteps = 1, kMiddleSteps = 2;           // packs of a row that a lane has

template <class T>
struct Forward {
  using C = Computed<T>;
  const T *x, *residual, *weight, *bias;
  T *y, *sum;
  C *mean, *rstd;
  std::int64_t rows, n;
  double eps;
};

/// Rows of at most kHeldElements, one a team.
template <class T, int V>
__global__ void __launch_bounds__(cuda::kTeamThreads) forward_packs(const Forward<T> args) {
  using C = Computed<T>;
  const RowTeam team;
  if (team.row >= args.rows) return;
  const std::int64_t n = args.n, begin = team.warp * kSumBlock, start = team.row * n;
  C held[cuda::kPackSteps<V>][V];
  C sum = C(0), square = C(0);
  cuda::for_packs<V>(team, begin, n, [&](int k, std::int64_t i) {
    cuda::Pack<T, V> pack = cuda::pack_at<V>(args.x + start + i);
    if (args.residual != nullptr) {
      const cuda::Pack<T, V> other = cuda::pack_at<V>(args.residual + start + i);
      for (int e = 0; e < V; ++e)
        pack.value[e] = cuda::write<T>(cuda::read(pack.value[e]) + cuda::read(other.value[e]));
      cuda::store_pack(args.sum + start + i, pack);
    }
    for (int e = 0; e < V; ++e) {
      held[k][e] = cuda::read(pack.value[e]);
      sum += held[k][e];
    }
  });
  C mean = C(0);
  if (args.mean != nullptr) mean = static_cast<C>(cuda::join_team(team, sum) / static_cast<double>(n));
  cuda::for_packs<V>(team, begin, n, [&](int k, std::int64_t) {
    for (int e = 0; e < V; ++e) square += (held[k][e] - mean) * (held[k][e] - mean);
  });
  const C rstd = static_cast<C>(1 / math::sqrt(cuda::join_team(team, square) / static_cast<double>(n) + args.eps));
  if (team.warp == 0 && team.lane == 0) {
    if (args.mean != nullptr) args.mean[team.row] = mean;
    args.rstd[team.row] = rstd;
  }
  cuda::for_packs<V>(team, begin, n, [&](int k, std::int64_t i) {
    cuda::Pack<T, V> weight{}, bias{};
    C y[V];
    if (args.weight != nullptr) weight = cuda::pack_at<V>(args.weight + i);
    if (args.bias != nullptr) bias = cuda::pack_at<V>(args.bias + i);
    for (int e = 0; e < V; ++e) {
      C value = (held[k][e] - mean) * rstd;
      if (args.weight != nullptr) {
        const C w = cuda::read(weight.value[e]);
        value = args.bias != nullptr ? math::fma(value, w, cuda::read(bias.value[e])) : value * w;
      } else if (args.bias != nullptr) {
        value += cuda::read(bias.value[e]);
      }
      y[e] = value;
    }
    cuda::store_pack(args.y + start + i, cuda::rounded<T, V>(y));
  });
}

/// Rows in words of 16 bytes, kSteps of them a lane. A lane reads from shared memory what it copied there itself.
template <class T, int kSteps, bool kHasResidual>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce) forward_blocks(const Forward<T> args) {
  using C = Computed<T>;
  constexpr int V = cuda::kPackWidth<T>, kColumns = kSteps * 32 * V;
  constexpr int kStageBytes = (kHasResidual ? 2 : 1) * kColumns * static_cast<int>(sizeof(T));
  using Row = cuda::Pack<T, V>;
  extern __shared__ __align__(16) char shared_bytes[];
  __shared__ double parts[2][kThreads / 32];
  const RowTeam team;
  const int n = static_cast<int>(args.n), begin = team.warp * kColumns + team.lane * V;
  const int groups = static_cast<int>(blockDim.z), group = static_cast<int>(threadIdx.z);
  const int left = min(n, (team.warp + 1) * kColumns) - begin;
  char* const stages = shared_bytes + team.slot * kStages * kStageBytes + team.lane * 16;
  const int rows = static_cast<int>(args.rows), first = static_cast<int>(blockIdx.x) * groups + group,
            step = static_cast<int>(gridDim.x) * groups;
  const std::int64_t stride = static_cast<std::int64_t>(step) * n;
  const bool has_mean = args.mean != nullptr, has_weight = args.weight != nullptr, has_bias = args.bias != nullptr;
  std::int64_t at = static_cast<std::int64_t>(first) * n + begin;
  const auto copy_row = [&](int row, std::int64_t from, int stage) {
    if (row < rows) {
      T* const to = reinterpret_cast<T*>(stages + stage * kStageBytes);
      cuda::for_lane<kSteps, V>(left, [&](int, int i) {
        cuda::copy_ahead(to + i, args.x + from + i);
        if constexpr (kHasResidual) cuda::copy_ahead(to + kColumns + i, args.residual + from + i);
      });
    }
    cuda::end_copies();
  };
#pragma unroll
  for (int k = 0; k < kStages; ++k) copy_row(first + k * step, at + k * stride, k);
  Row held_weight[kSteps], held_bias[kSteps];
  cuda::for_lane<kSteps, V>(left, [&](int k, int i) {
    if (has_weight) held_weight[k] = cuda::pack_at<V>(args.weight + begin + i);
    if (has_bias) held_bias[k] = cuda::pack_at<V>(args.bias + begin + i);
  });
  const double share = 1.0 / static_cast<double>(n);
  const C eps = static_cast<C>(args.eps);
  int turn = 0;  // 0 or 1
  for (int row = first; row < rows; row += step, at += stride, turn = 1 - turn) {
    cuda::wait_copies<kStages - 1>();
    const T* const x_row = reinterpret_cast<const T*>(stages + turn * kStageBytes);
    C held[kSteps][V];
    C sum = C(0), square = C(0);
    cuda::for_lane<kSteps, V>(left, [&](int k, int i) {
      Row own = cuda::pack_at<V>(x_row + i);
      if constexpr (kHasResidual) {
        const auto x = cuda::numbers(own), residual = cuda::numbers(cuda::pack_at<V>(x_row + kColumns + i));
        C both[V];
        for (int e = 0; e < V; ++e) both[e] = x.value[e] + residual.value[e];
        own = cuda::rounded<T, V>(both);
        cuda::store_pack(args.sum + at + i, own);
      }
      const auto x = cuda::numbers(own);
      for (int e = 0; e < V; ++e) {
        held[k][e] = x.value[e];
        sum += x.value[e];
      }
    });
    // A line of parts for each of the two averages of a row. Where there is one, they take turns, so that a warp may be
    // a row ahead of one that still reads.
    const auto average = [&](C mine, int kind) {
      const double part = static_cast<double>(cuda::join_lanes(mine, cuda::AddLanes{}));
      if (team.warps == 1) return part * share;
      double* const line = parts[has_mean ? kind : turn];
      if (team.lane == 0) line[team.slot] = part;
      cuda::meet_team(group, 32 * team.warps);
      double total = 0;
#pragma unroll 1
      for (int slot = team.slot - team.warp, w = 0; w < team.warps; ++w, ++slot) total += line[slot];
      return total * share;
    };
    const C mean = has_mean ? static_cast<C>(average(sum, 0)) : C(0);
    cuda::for_lane<kSteps, V>(left, [&](int k, int) {
      for (int e = 0; e < V; ++e) {
        held[k][e] -= mean;
        square = math::fma(held[k][e], held[k][e], square);
      }
    });
    const C rstd = C(1) / math::sqrt(static_cast<C>(average(square, 1)) + eps);
    copy_row(row + kStages * step, at + kStages * stride, turn);  // every number of this row has been used by now
    if (team.warp == 0 && team.lane == 0) {
      if (has_mean) args.mean[row] = mean;
      args.rstd[row] = rstd;
    }
    cuda::for_lane<kSteps, V>(left, [&](int k, int i) {
      const auto weight = cuda::numbers(held_weight[k]), bias = cuda::numbers(held_bias[k]);
      C y[V];
      for (int e = 0; e < V; ++e) {
        const C value = held[k][e] * rstd, w = has_weight ? weight.value[e] : C(1);
        y[e] = has_bias ? math::fma(value, w, bias.value[e]) : value * w;
      }
      cuda::store_pack(args.y + at + i, cuda::rounded<T, V>(y));
    });
  }
}

template <int kSteps, bool kHasResidual, class T>
void launch_blocks(const Forward<T>& args, const Cuda& cuda) {
  const cuda::RowPlan plan(args.n, kSteps * 32 * cuda::kPackWidth<T>, kThreads, kStages,
                           (kHasResidual ? 2 : 1) * sizeof(T));
  const std::int64_t blocks = std::min(kMostBlocks, (args.rows + plan.groups - 1) / plan.groups);
  const auto kernel = forward_blocks<T, kSteps, kHasResidual>;
  check_cuda(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(plan.shared_bytes)),
      LayerNormArgs::kName, cuda.device);
  kernel<<<static_cast<unsigned>(blocks), plan.threads(), plan.shared_bytes, stream_of(cuda)>>>(args);
}
template <int kSteps, class T>
void launch_blocks(const Forward<T>& args, const Cuda& cuda) {
  args.residual != nullptr ? launch_blocks<kSteps, true>(args, cuda) : launch_blocks<kSteps, false>(args, cuda);
}

/// Rows of any length and address.
template <class T>
__global__ void __launch_bounds__(cuda::kTeamThreads) forward_rows(const Forward<T> args) {
  using C = Computed<T>;
  const RowTeam team;
  if (team.row >= args.rows) return;
  const std::int64_t n = args.n;
  const T* x = args.x + team.row * n;
  T* const y = args.y + team.row * n;
  if (args.residual != nullptr) {
    const T* const residual = args.residual + team.row * n;
    T* const sum = args.sum + team.row * n;
    team.for_row(n, [&](int, std::int64_t i) { sum[i] = cuda::write<T>(cuda::read(x[i]) + cuda::read(residual[i])); });
    x = sum;  // each thread reads what it wrote
  }
  C mean = C(0);
  if (args.mean != nullptr) {
    mean = static_cast<C>(cuda::sum_row<C>(team, n, [&](int, std::int64_t i) { return cuda::read(x[i]); }) /
                          static_cast<double>(n));
  }
  const double squares = cuda::sum_row<C>(
      team, n, [&](int, std::int64_t i) { return (cuda::read(x[i]) - mean) * (cuda::read(x[i]) - mean); });
  const C rstd = static_cast<C>(1 / math::sqrt(squares / static_cast<double>(n) + args.eps));
  if (team.warp == 0 && team.lane == 0) {
    if (args.mean != nullptr) args.mean[team.row] = mean;
    args.rstd[team.row] = rstd;
  }
  team.for_row(n, [&](int, std::int64_t i) {
    C value = (cuda::read(x[i]) - mean) * rstd;
    if (args.weight != nullptr) {
      const C w = cuda::read(args.weight[i]);
      value = args.bias != nullptr ? math::fma(value, w, cuda::read(args.bias[i])) : value * w;
    } else if (args.bias != nullptr) {
      value += cuda::read(args.bias[i]);
    }
    y[i] = cuda::write<T>(value);
  });
}

template <class F>
void visit_float(DType dtype, const char* op, F&& f) {
  dtype == DType::f64 ? f(TypeTag<double>{}) : visit_training_float(dtype, op, f);
}

}  // namespace

void run(const Cuda& cuda, const LayerNormArgs& args) {
  const std::int64_t n = args.x.size[args.x.ndim - 1], rows = cuda::rows_of(args.x);
  if (rows == 0) return;
  visit_float(args.x.dtype, LayerNormArgs::kName, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = Computed<T>;
    const Forward<T> forward{args.x.as<T>(),
                             args.residual.as<T>(),
                             args.weight.as<T>(),
                             args.bias.as<T>(),
                             args.y.as<T>(),
                             args.sum.as<T>(),
                             args.mean.as<C>(),
                             args.rstd.as<C>(),
                             rows,
                             n,
                             args.eps};
    const cuda::TeamLaunch launch(rows, n);
    if constexpr (!std::is_same_v<T, double>) {
      if (n <= cuda::kHeldElements &&
          cuda::rows_fit(n, {&args.x, &args.residual, &args.weight, &args.bias, &args.y, &args.sum})) {
        if (n <= 4 * kShortSteps * 32 * cuda::kPackWidth<T> && rows < kMostRows)
          return launch_blocks<kShortSteps>(forward, cuda);
        if (n <= cuda::kMostNarrow && rows < kMostRows) return launch_blocks<kMiddleSteps>(forward, cuda);
        forward_packs<T, cuda::kPackWidth<T>><<<launch.blocks, launch.threads, 0, stream_of(cuda)>>>(forward);
        return;
      }
    }
    forward_rows<T><<<launch.blocks, launch.threads, 0, stream_of(cuda)>>>(forward);
  });
  check_cuda(cudaGetLastError(), LayerNormArgs::kName, cuda.device);
}

}  // namespace castor
