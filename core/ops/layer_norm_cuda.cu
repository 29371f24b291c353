// Layer and rms norm on CUDA. Memory bounds it, so a row is read once, in words of 16 bytes, and stays in registers as
// it came between the passes over it. Rows of up to four words a lane have a warp each, which waits for nobody; four
// such rows make a block, so that there are always new ones to begin. Longer rows have a block each. Measured on an
// H200, bf16, rows of 768: as fast as a copy of as many bytes, where warps that stayed and copied their next rows ahead
// took half as long again, and weights that were fetched before the sums a seventh (more registers, fewer rows at a
// time). Rows of more than 16384 numbers, those that are no multiple of 16 bytes, and f64 go through a kernel of their
// own.
//
// Delicate: which numbers meet when depends on the shape alone.
#include "core/ops/norm.h"
#include "core/ops/row_packs_cuda.cuh"

namespace castor {
namespace {

using cuda::Computed;
using cuda::RowTeam;
using cuda::visit_float;

constexpr int kPacks = 4;            // words of a row in a lane
constexpr unsigned kRowsAtOnce = 4;  // of a block, where a row has a warp
constexpr int kMostThreads = 1024;   // of a block, where it has a row

template <class T>
struct Forward {
  using C = Computed<T>;
  const T *x, *residual, *weight, *bias;
  T *y, *sum;
  C *mean, *rstd;
  std::int64_t rows, n;
  double eps;
};

/// The threads' numbers of a row, each warp's added lane by lane, then in order of warps; in every thread.
template <class C>
__device__ double add_row(const RowTeam& team, C mine, double (&parts)[kMostThreads / 32]) {
  const double part = static_cast<double>(cuda::join_lanes(mine, cuda::AddLanes{}));
  if (team.warps == 1) return part;
  if (team.lane == 0) parts[team.warp] = part;
  __syncthreads();
  double total = 0;
  for (int w = 0; w < team.warps; ++w) total += parts[w];
  return total;
}

/// Rows in words of 16 bytes. kIsUsual: layer norm with weight and bias, rms norm with a weight.
template <class T, bool kHasMean, bool kHasResidual, bool kIsUsual>
__global__ void __launch_bounds__(kMostThreads) forward_packs(const Forward<T> args) {
  using C = Computed<T>;
  constexpr int V = cuda::kPackWidth<T>;
  __shared__ double sums[kMostThreads / 32], squares[kMostThreads / 32];
  const RowTeam team;
  if (team.row >= args.rows) return;
  const int n = static_cast<int>(args.n), first = (team.warp * 32 + team.lane) * V, stride = team.warps * 32 * V;
  const std::int64_t start = team.row * args.n;
  const auto for_own = [&](auto body) {
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      if (const int i = k * stride + first; i < n) body(k, i);
    }
  };
  cuda::Pack<T, V> own[kPacks];
  for_own([&](int k, int i) { own[k] = cuda::pack_at<V>(args.x + start + i); });
  if constexpr (kHasResidual) {
    for_own([&](int k, int i) {
      const auto x = cuda::numbers(own[k]), residual = cuda::numbers(cuda::pack_at<V>(args.residual + start + i));
      C both[V];
      for (int e = 0; e < V; ++e) both[e] = x.value[e] + residual.value[e];
      own[k] = cuda::rounded<T, V>(both);
      cuda::store_pack(args.sum + start + i, own[k]);
    });
  }
  const double share = 1.0 / static_cast<double>(n);
  C mean = C(0), sum = C(0), square = C(0);
  if constexpr (kHasMean) {
    for_own([&](int k, int) {
      const auto x = cuda::numbers(own[k]);
      for (int e = 0; e < V; ++e) sum += x.value[e];
    });
    mean = static_cast<C>(add_row(team, sum, sums) * share);
  }
  for_own([&](int k, int) {
    const auto x = cuda::numbers(own[k]);
    for (int e = 0; e < V; ++e) square = math::fma(x.value[e] - mean, x.value[e] - mean, square);
  });
  const C rstd = C(1) / math::sqrt(static_cast<C>(add_row(team, square, squares) * share) + static_cast<C>(args.eps));
  if (team.warp == 0 && team.lane == 0) {
    if (kHasMean) args.mean[team.row] = mean;
    args.rstd[team.row] = rstd;
  }
  const bool has_weight = kIsUsual || args.weight != nullptr, has_bias = kIsUsual ? kHasMean : args.bias != nullptr;
  for_own([&](int k, int i) {
    cuda::Pack<T, V> weight{}, bias{};
    if (has_weight) weight = cuda::pack_at<V>(args.weight + i);
    if (has_bias) bias = cuda::pack_at<V>(args.bias + i);
    const auto x = cuda::numbers(own[k]), w = cuda::numbers(weight), b = cuda::numbers(bias);
    C y[V];
    for (int e = 0; e < V; ++e) {
      const C value = (x.value[e] - mean) * rstd, factor = has_weight ? w.value[e] : C(1);
      y[e] = has_bias ? math::fma(value, factor, b.value[e]) : value * factor;
    }
    cuda::store_pack(args.y + start + i, cuda::rounded<T, V>(y));
  });
}

template <class T, bool kHasMean, bool kHasResidual>
void launch_packs(const Forward<T>& args, const Cuda& cuda) {
  constexpr std::int64_t kOfWarp = 32 * kPacks * cuda::kPackWidth<T>;
  const auto warps = static_cast<unsigned>((args.n + kOfWarp - 1) / kOfWarp);
  const unsigned together = warps == 1 ? kRowsAtOnce : 1;
  const auto blocks = static_cast<unsigned>((args.rows + together - 1) / together);
  const bool is_usual = args.weight != nullptr && (args.bias != nullptr) == kHasMean;
  const auto kernel =
      is_usual ? forward_packs<T, kHasMean, kHasResidual, true> : forward_packs<T, kHasMean, kHasResidual, false>;
  kernel<<<blocks, dim3(32, warps, together), 0, stream_of(cuda)>>>(args);
}
template <class T>
void launch_packs(const Forward<T>& args, const Cuda& cuda) {
  const bool has_residual = args.residual != nullptr;
  if (args.mean != nullptr) {
    has_residual ? launch_packs<T, true, true>(args, cuda) : launch_packs<T, true, false>(args, cuda);
  } else {
    has_residual ? launch_packs<T, false, true>(args, cuda) : launch_packs<T, false, false>(args, cuda);
  }
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
        return launch_packs(forward, cuda);
      }
    }
    forward_rows<T><<<launch.blocks, launch.threads, 0, stream_of(cuda)>>>(forward);
  });
  check_cuda(cudaGetLastError(), LayerNormArgs::kName, cuda.device);
}

}  // namespace castor
