// Layer and rms norm on CUDA. Memory bounds it, so a row is read once, in words of 16 bytes, and stays in registers as
// it came between the passes over it. A warp takes as many columns as keep about 64 bytes a lane on their way; a row
// has the warps it needs, and short rows share a block. What counts is how many bytes a multiprocessor has on their
// way, and how short each row's chain of steps is: hence few registers, addresses that are constants but for one, sums
// in f32, no division. Measured on an H200, bf16: 1.01 to 1.05 times the time of this kernel without its arithmetic.
// Slower were blocks that stay and copy their next rows ahead, by each lane or in bulk (1.09 to 1.25 for rows of 768),
// weights that are fetched before the sums, and one meeting for mean and squares in place of two. Rows of more than
// 16384 numbers, those that cannot be moved in words of 16 bytes, and f64 go through a kernel of their own.
//
// Delicate: which numbers meet when depends on the shape, and on whether addresses allow words of 16 bytes.
#include "core/ops/norm.h"
#include "core/ops/row_packs_cuda.cuh"

namespace castor {
namespace {

using cuda::Computed;
using cuda::RowTeam;
using cuda::visit_float;

constexpr std::int64_t kMostRowsOfBlock = 8;

/// How a kernel is compiled whose lanes have kSteps words of a row: columns of a warp, threads of a block at most, and
/// blocks of so many threads that a multiprocessor's registers must do for. The rare cases would not fit.
template <class T, int kSteps, bool kIsUsual>
struct Bounds {
  static constexpr int kColumns = kSteps * 32 * cuda::kPackWidth<T>;
  static constexpr int kThreads = (static_cast<int>(cuda::kHeldElements) + kColumns - 1) / kColumns * 32;
  static constexpr int kThreadsAtOnce = sizeof(T) == 4 ? 1024 : kSteps == 2 ? 2048 : 1536;
  static constexpr int kBlocks = kIsUsual ? kThreadsAtOnce / kThreads : 1;
};

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
template <class C, int kWarps>
__device__ C add_row(const RowTeam& team, C mine, C (&parts)[kWarps]) {
  const C part = cuda::join_lanes(mine, cuda::AddLanes{});
  if (team.warps == 1) return part;
  if (team.lane == 0) parts[team.warp] = part;
  __syncthreads();
  C total = C(0);
  for (int w = 0; w < team.warps; ++w) total += parts[w];
  return total;
}

/// Rows in words of 16 bytes. kIsUsual: layer norm with weight and bias, rms norm with a weight.
template <class T, bool kHasMean, bool kHasResidual, int kSteps, bool kIsUsual,
          class Limits = Bounds<T, kSteps, kIsUsual>>
__global__ void __launch_bounds__(Limits::kThreads, Limits::kBlocks)
    forward_packs(const Forward<T> args, const float share) {
  using C = Computed<T>;
  constexpr int V = cuda::kPackWidth<T>, kColumns = Limits::kColumns;
  __shared__ C sums[Limits::kThreads / 32], squares[Limits::kThreads / 32];
  const RowTeam team;
  if (team.row >= args.rows) return;
  const int n = static_cast<int>(args.n), begin = team.warp * kColumns + team.lane * V;
  const std::int64_t at = team.row * args.n + begin;
  const auto for_own = [&, left = min(n, (team.warp + 1) * kColumns) - begin](auto body) {
    cuda::for_lane<kSteps, V>(left, body);
  };
  cuda::Pack<T, V> own[kSteps];
  const T* const x = args.x + at;
  for_own([&](int k, int i) { own[k] = cuda::pack_at<V>(x + i); });
  if constexpr (kHasResidual) {
    const T* const residual = args.residual + at;
    T* const sum = args.sum + at;
    for_own([&](int k, int i) {
      const auto a = cuda::numbers(own[k]), b = cuda::numbers(cuda::pack_at<V>(residual + i));
      C both[V];
      for (int e = 0; e < V; ++e) both[e] = a.value[e] + b.value[e];
      own[k] = cuda::rounded<T, V>(both);
      cuda::store_pack(sum + i, own[k]);
    });
  }
  C mean = C(0), sum = C(0), square = C(0);
  if constexpr (kHasMean) {
    for_own([&](int k, int) {
      const auto own_x = cuda::numbers(own[k]);
      C part = own_x.value[0];
      for (int e = 1; e < V; ++e) part += own_x.value[e];
      sum += part;
    });
    mean = add_row(team, sum, sums) * share;
  }
  for_own([&](int k, int) {
    const auto own_x = cuda::numbers(own[k]);
    C part = C(0);
    for (int e = 0; e < V; ++e) part = math::fma(own_x.value[e] - mean, own_x.value[e] - mean, part);
    square += part;
  });
  const C rstd = rsqrtf(math::fma(add_row(team, square, squares), share, static_cast<C>(args.eps)));
  if (team.warp == 0 && team.lane == 0) {
    if (kHasMean) args.mean[team.row] = mean;
    args.rstd[team.row] = rstd;
  }
  const bool has_weight = kIsUsual || args.weight != nullptr, has_bias = kIsUsual ? kHasMean : args.bias != nullptr;
  const T *const weights = args.weight + begin, *const biases = args.bias + begin;
  T* const y = args.y + at;
  for_own([&](int k, int i) {
    cuda::Pack<T, V> weight{}, bias{};
    if (has_weight) weight = cuda::pack_at<V>(weights + i);
    if (has_bias) bias = cuda::pack_at<V>(biases + i);
    const auto own_x = cuda::numbers(own[k]), w = cuda::numbers(weight), b = cuda::numbers(bias);
    C values[V];
    for (int e = 0; e < V; ++e) {
      const C value = (own_x.value[e] - mean) * rstd, factor = has_weight ? w.value[e] : C(1);
      values[e] = has_bias ? math::fma(value, factor, b.value[e]) : value * factor;
    }
    cuda::store_pack(y + i, cuda::rounded<T, V>(values));
  });
}

template <class T, int kSteps>
constexpr std::int64_t warps_of(std::int64_t n) {
  constexpr int kColumns = Bounds<T, kSteps, true>::kColumns;
  return (n + kColumns - 1) / kColumns;
}

template <class T, bool kHasMean, bool kHasResidual, int kSteps>
void launch_steps(const Forward<T>& args, const Cuda& cuda) {
  const std::int64_t together =
      std::clamp<std::int64_t>(Bounds<T, kSteps, true>::kColumns / args.n, 1, kMostRowsOfBlock);
  const auto blocks = static_cast<unsigned>((args.rows + together - 1) / together);
  const dim3 threads(32, static_cast<unsigned>(warps_of<T, kSteps>(args.n)), static_cast<unsigned>(together));
  const bool is_usual = args.weight != nullptr && (args.bias != nullptr) == kHasMean;
  const auto kernel = is_usual ? forward_packs<T, kHasMean, kHasResidual, kSteps, true>
                               : forward_packs<T, kHasMean, kHasResidual, kSteps, false>;
  kernel<<<blocks, threads, 0, stream_of(cuda)>>>(args, 1.0f / static_cast<float>(args.n));
}

/// Beside a residual a lane has half the words, because each is two on their way: two, or three where those leave fewer
/// lanes without a word.
template <class T, bool kHasMean, bool kHasResidual>
void launch_packs(const Forward<T>& args, const Cuda& cuda) {
  if constexpr (kHasResidual && sizeof(T) == 2) {
    3 * warps_of<T, 3>(args.n) < 2 * warps_of<T, 2>(args.n) ? launch_steps<T, kHasMean, kHasResidual, 3>(args, cuda)
                                                            : launch_steps<T, kHasMean, kHasResidual, 2>(args, cuda);
  } else {
    launch_steps<T, kHasMean, kHasResidual, 4>(args, cuda);
  }
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
