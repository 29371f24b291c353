// Layer and rms norm on CUDA. A team of warps a row, which stays in registers between the passes over it, in words of
// 16 bytes where it fits: a warp has 512 columns, so that many rows are on their way at a time, or 1024 where a row is
// long.
//
// Delicate: which numbers meet when depends on the shape alone. The warps of one row meet at a barrier of their own.
// Rows of more than 16384 numbers, rows that are no multiple of 16 bytes, and f64 go through a kernel of their own.
#include "core/ops/norm.h"
#include "core/ops/row_packs_cuda.cuh"

namespace castor {
namespace {

using cuda::RowTeam;

template <class T>
using Computed = decltype(load(T{}));

using cuda::kNarrow;

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

/// Rows of at most cuda::kMostNarrow, one a team of warps; a block has as many teams as fit in 256 threads.
template <class T, int V>
__global__ void __launch_bounds__(256, 4) forward_teams(const Forward<T> args) {
  using C = Computed<T>;
  using Row = cuda::Pack<T, V>;
  constexpr int kSteps = static_cast<int>(kNarrow) / (32 * V);
  __shared__ double parts[2][8];
  const RowTeam team;
  if (team.row >= args.rows) return;
  const int n = static_cast<int>(args.n), begin = team.warp * static_cast<int>(kNarrow) + team.lane * V;
  const int left = min(n, (team.warp + 1) * static_cast<int>(kNarrow)) - begin;
  const std::int64_t start = team.row * n + begin;
  const bool has_mean = args.mean != nullptr;
  Row own[kSteps], other[kSteps];
  cuda::for_lane<kSteps, V>(left, [&](int k, int i) { own[k] = cuda::pack_at<V>(args.x + start + i); });
  C held[kSteps][V];
  C sum = C(0), square = C(0);
  if (args.residual != nullptr) {
    cuda::for_lane<kSteps, V>(left, [&](int k, int i) { other[k] = cuda::pack_at<V>(args.residual + start + i); });
    cuda::for_lane<kSteps, V>(left, [&](int k, int i) {
      C both[V];
      for (int e = 0; e < V; ++e) both[e] = cuda::read(own[k].value[e]) + cuda::read(other[k].value[e]);
      own[k] = cuda::rounded<T, V>(both);
      cuda::store_pack(args.sum + start + i, own[k]);
    });
  }
  cuda::for_lane<kSteps, V>(left, [&](int k, int) {
    for (int e = 0; e < V; ++e) {
      held[k][e] = cuda::read(own[k].value[e]);
      sum += held[k][e];
    }
  });
  const double share = 1.0 / static_cast<double>(n);
  const auto average = [&](C mine, int kind) {
    const double part = static_cast<double>(cuda::join_lanes(mine, cuda::AddLanes{}));
    if (team.warps == 1) return part * share;
    if (team.lane == 0) parts[kind][team.slot] = part;
    cuda::meet_team(static_cast<int>(threadIdx.z), 32 * team.warps);
    double total = 0;
    for (int w = 0; w < team.warps; ++w) total += parts[kind][team.slot - team.warp + w];
    return total * share;
  };
  const C mean = has_mean ? static_cast<C>(average(sum, 0)) : C(0);
  cuda::for_lane<kSteps, V>(left, [&](int k, int) {
    for (int e = 0; e < V; ++e) {
      held[k][e] -= mean;
      square = math::fma(held[k][e], held[k][e], square);
    }
  });
  const C rstd = C(1) / math::sqrt(static_cast<C>(average(square, 1)) + static_cast<C>(args.eps));
  if (team.warp == 0 && team.lane == 0) {
    if (has_mean) args.mean[team.row] = mean;
    args.rstd[team.row] = rstd;
  }
  cuda::for_lane<kSteps, V>(left, [&](int k, int i) {
    Row weight{}, bias{};
    C y[V];
    if (args.weight != nullptr) weight = cuda::pack_at<V>(args.weight + begin + i);
    if (args.bias != nullptr) bias = cuda::pack_at<V>(args.bias + begin + i);
    for (int e = 0; e < V; ++e) {
      const C value = held[k][e] * rstd, w = args.weight != nullptr ? cuda::read(weight.value[e]) : C(1);
      y[e] = args.bias != nullptr ? math::fma(value, w, cuda::read(bias.value[e])) : value * w;
    }
    cuda::store_pack(args.y + start + i, cuda::rounded<T, V>(y));
  });
}

template <class T>
void launch_teams(const Forward<T>& args, const Cuda& cuda) {
  const auto warps = static_cast<unsigned>((args.n + kNarrow - 1) / kNarrow);
  const dim3 threads(32, warps, 8 / warps);
  const auto blocks = static_cast<unsigned>((args.rows + threads.z - 1) / threads.z);
  forward_teams<T, cuda::kPackWidth<T>><<<blocks, threads, 0, stream_of(cuda)>>>(args);
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
        if (n <= cuda::kMostNarrow) return launch_teams(forward, cuda);
        forward_packs<T, cuda::kPackWidth<T>><<<launch.blocks, launch.threads, 0, stream_of(cuda)>>>(forward);
        return;
      }
    }
    forward_rows<T><<<launch.blocks, launch.threads, 0, stream_of(cuda)>>>(forward);
  });
  check_cuda(cudaGetLastError(), LayerNormArgs::kName, cuda.device);
}

}  // namespace castor
