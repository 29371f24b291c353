// Layer and rms norm on CUDA. Forward: a team of warps a row, which stays in registers between the passes over it, in
// words of 16 bytes where it fits. Backward: a block owns 32 rows; its warps keep the sums for dweight and dbias of
// their columns in registers while they make dx row by row, join them in shared memory and leave one line in the
// workspace; a second kernel adds the lines in f64. So memory sees x, dy and dx once.
//
// Delicate: which rows meet when depends on the shape alone. Rows beyond the last are walked with the others, because
// all warps of a block meet at the same barriers, but count for nothing. Rows of more than 16384 numbers, rows that are
// no multiple of 16 bytes, and f64 go through kernels of their own, which read x and dy twice.
#include "core/ops/norm.h"
#include "core/ops/row_packs_cuda.cuh"

namespace castor {
namespace {

using cuda::RowTeam;

template <class T>
using Computed = decltype(load(T{}));

template <class T>
struct Forward {
  using C = Computed<T>;
  const T *x, *residual, *weight, *bias;
  T *y, *sum;
  C *mean, *rstd;
  std::int64_t rows, n;
  double eps;
};

/// Rows of at most kHeldElements.
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

template <class T>
struct Backward {
  using C = Computed<T>;
  const T *x, *weight, *dy, *dsum;
  const C *mean, *rstd;
  T* dx;
  C* sums;  ///< [blocks, 2, n] for dweight and dbias; or nullptr
  std::int64_t rows, n;
};

/// What one row's dx is made of: rstd * (g - average - xhat * slope), g = dy * weight.
template <class C>
struct RowTerms {
  C mean, rstd, average, slope;
};

template <class T>
__device__ RowTerms<Computed<T>> row_terms(const RowTeam& team, const Backward<T>& args, std::int64_t row) {
  using C = Computed<T>;
  const std::int64_t n = args.n;
  const C mean = args.mean != nullptr ? args.mean[row] : C(0), rstd = args.rstd[row];
  if (args.dx == nullptr) return {mean, rstd, C(0), C(0)};
  const T* const x = args.x + row * n;
  const T* const dy = args.dy + row * n;
  const SumPair<double> sums = cuda::sum_pair_row<C>(team, n, [&](int, std::int64_t i, C& a, C& b) {
    C g = cuda::read(dy[i]);
    if (args.weight != nullptr) g *= cuda::read(args.weight[i]);
    a += g;
    b += g * ((cuda::read(x[i]) - mean) * rstd);
  });
  return {mean, rstd, args.mean != nullptr ? static_cast<C>(sums.a / static_cast<double>(n)) : C(0),
          static_cast<C>(sums.b / static_cast<double>(n))};
}

template <class T>
__device__ void write_dx(const Backward<T>& args, const RowTerms<Computed<T>>& terms, std::int64_t at, std::int64_t i,
                         Computed<T> xhat, Computed<T> d) {
  using C = Computed<T>;
  const C g = args.weight != nullptr ? d * cuda::read(args.weight[i]) : d;
  C value = terms.rstd * (g - terms.average - xhat * terms.slope);
  if (args.dsum != nullptr) value += cuda::read(args.dsum[at]);
  args.dx[at] = cuda::write<T>(value);
}

/// Rows of at most kHeldElements, 32 of them a block. In 16 bits a row's x and dy stay in registers, in f32 they come
/// from the first-level cache the second time.
template <class T, int V>
__global__ void __launch_bounds__(cuda::kTeamThreads, 1) backward_blocks(const Backward<T> args) {
  using C = Computed<T>;
  using Row = cuda::Pack<T, V>;
  constexpr int kSteps = cuda::kPackSteps<V>;
  constexpr bool kKeeps = sizeof(T) == 2 && V > 1;
  extern __shared__ char shared_bytes[];
  C* const shared = reinterpret_cast<C*>(shared_bytes);
  const RowTeam team;
  const std::int64_t n = args.n, begin = team.warp * kSumBlock;
  const int groups = static_cast<int>(blockDim.z), group = static_cast<int>(threadIdx.z);
  C dweight[kSteps][V] = {}, dbias[kSteps][V] = {};
  for (int r = group; r < kLayerNormRows; r += groups) {
    const std::int64_t wanted = blockIdx.x * kLayerNormRows + r;
    const bool is_live = wanted < args.rows;
    const std::int64_t row = is_live ? wanted : args.rows - 1, start = row * n;
    const C mean = args.mean != nullptr ? args.mean[row] : C(0), rstd = args.rstd[row];
    Row held_x[kKeeps ? kSteps : 1], held_dy[kKeeps ? kSteps : 1];
    C average = C(0), slope = C(0);
    if constexpr (kKeeps) {
      cuda::for_packs<V>(team, begin, n, [&](int k, std::int64_t i) {
        held_x[k] = cuda::pack_at<V>(args.x + start + i);
        held_dy[k] = cuda::pack_at<V>(args.dy + start + i);
      });
    }
    const auto fetch = [&](int k, std::int64_t i, Row& x, Row& dy) {
      if constexpr (kKeeps) {
        x = held_x[k];
        dy = held_dy[k];
      } else {
        x = cuda::pack_at<V>(args.x + start + i);
        dy = cuda::pack_at<V>(args.dy + start + i);
      }
    };
    if (args.dx != nullptr) {
      C a = C(0), b = C(0);
      cuda::for_packs<V>(team, begin, n, [&](int k, std::int64_t i) {
        Row x, dy, weight;
        fetch(k, i, x, dy);
        if (args.weight != nullptr) weight = cuda::pack_at<V>(args.weight + i);
        for (int e = 0; e < V; ++e) {
          C g = cuda::read(dy.value[e]);
          if (args.weight != nullptr) g *= cuda::read(weight.value[e]);
          a += g;
          b += g * ((cuda::read(x.value[e]) - mean) * rstd);
        }
      });
      const SumPair<double> sums = cuda::join_team(team, a, b);
      if (args.mean != nullptr) average = static_cast<C>(sums.a / static_cast<double>(n));
      slope = static_cast<C>(sums.b / static_cast<double>(n));
    }
    if (!is_live) continue;
    cuda::for_packs<V>(team, begin, n, [&](int k, std::int64_t i) {
      Row x, dy, weight, dsum;
      C dx[V];
      fetch(k, i, x, dy);
      if (args.dx != nullptr && args.weight != nullptr) weight = cuda::pack_at<V>(args.weight + i);
      if (args.dx != nullptr && args.dsum != nullptr) dsum = cuda::pack_at<V>(args.dsum + start + i);
      for (int e = 0; e < V; ++e) {
        const C xhat = (cuda::read(x.value[e]) - mean) * rstd, d = cuda::read(dy.value[e]);
        if (args.dx != nullptr) {
          const C g = args.weight != nullptr ? d * cuda::read(weight.value[e]) : d;
          C value = rstd * (g - average - xhat * slope);
          if (args.dsum != nullptr) value += cuda::read(dsum.value[e]);
          dx[e] = value;
        }
        dweight[k][e] += d * xhat;
        dbias[k][e] += d;
      }
      if (args.dx != nullptr) cuda::store_pack(args.dx + start + i, cuda::rounded<T, V>(dx));
    });
  }
  if (args.sums == nullptr) return;
  // The groups' sums, one after another.
  C* const line = args.sums + blockIdx.x * 2 * n;
  for (int turn = 0; turn < groups; ++turn) {
    if (turn == group) {
      C* const to = turn == groups - 1 ? line : shared;
      cuda::for_packs<V>(team, begin, n, [&](int k, std::int64_t i) {
        for (int e = 0; e < V; ++e) {
          to[i + e] = turn > 0 ? shared[i + e] + dweight[k][e] : dweight[k][e];
          to[n + i + e] = turn > 0 ? shared[n + i + e] + dbias[k][e] : dbias[k][e];
        }
      });
    }
    __syncthreads();
  }
}

template <class T>
__global__ void __launch_bounds__(cuda::kTeamThreads) backward_rows(const Backward<T> args) {
  using C = Computed<T>;
  const RowTeam team;
  if (team.row >= args.rows) return;
  const RowTerms<C> terms = row_terms(team, args, team.row);
  team.for_row(args.n, [&](int, std::int64_t i) {
    const std::int64_t at = team.row * args.n + i;
    write_dx(args, terms, at, i, (cuda::read(args.x[at]) - terms.mean) * terms.rstd, cuda::read(args.dy[at]));
  });
}

/// One line of the workspace, a thread a column; blockIdx.x counts blocks of rows.
template <class T>
__global__ void __launch_bounds__(256) sum_columns(const Backward<T> args) {
  using C = Computed<T>;
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.y) * 256 + threadIdx.x, n = args.n;
  if (column >= n) return;
  const std::int64_t first = blockIdx.x * kLayerNormRows, last = std::min(args.rows, first + kLayerNormRows);
  C dweight = C(0), dbias = C(0);
  for (std::int64_t row = first; row < last; ++row) {
    const C d = cuda::read(args.dy[row * n + column]), mean = args.mean != nullptr ? args.mean[row] : C(0);
    dweight += d * ((cuda::read(args.x[row * n + column]) - mean) * args.rstd[row]);
    dbias += d;
  }
  args.sums[blockIdx.x * 2 * n + column] = dweight;
  args.sums[blockIdx.x * 2 * n + n + column] = dbias;
}

/// dweight and dbias from the workspace's lines: threadIdx.y adds every 32nd line, then the 32 sums meet in order.
template <class T>
__global__ void __launch_bounds__(1024)
    add_lines(const Computed<T>* sums, std::int64_t lines, std::int64_t n, T* dweight, T* dbias) {
  using C = Computed<T>;
  __shared__ double parts[32][33];
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * 32 + threadIdx.x;
  double part = 0;
  if (column < 2 * n) {
    for (std::int64_t line = threadIdx.y; line < lines; line += 32)
      part += static_cast<double>(sums[line * 2 * n + column]);
  }
  parts[threadIdx.y][threadIdx.x] = part;
  __syncthreads();
  if (threadIdx.y != 0 || column >= 2 * n) return;
  double total = 0;
  for (int k = 0; k < 32; ++k) total += parts[k][threadIdx.x];
  T* const to = column < n ? dweight : dbias;
  if (to != nullptr) to[column < n ? column : column - n] = cuda::write<T>(static_cast<C>(total));
}

template <class F>
void visit_float(DType dtype, const char* op, F&& f) {
  dtype == DType::f64 ? f(TypeTag<double>{}) : visit_training_float(dtype, op, f);
}

template <class T>
void launch_backward(const Backward<T>& args, bool fits, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>((args.rows + kLayerNormRows - 1) / kLayerNormRows);
  if constexpr (!std::is_same_v<T, double>) {
    if (fits && args.n <= cuda::kHeldElements) {
      const auto warps = static_cast<unsigned>((args.n + kSumBlock - 1) / kSumBlock);
      const unsigned groups = warps == 1 ? 8 : warps == 2 ? 4 : warps <= 4 ? 2 : 1;
      const std::size_t shared = groups > 1 ? static_cast<std::size_t>(2 * args.n) * sizeof(Computed<T>) : 0;
      backward_blocks<T, cuda::kPackWidth<T>><<<blocks, dim3(32, warps, groups), shared, stream>>>(args);
      return;
    }
  }
  if (args.dx != nullptr) {
    const cuda::TeamLaunch launch(args.rows, args.n);
    backward_rows<T><<<launch.blocks, launch.threads, 0, stream>>>(args);
  }
  if (args.sums != nullptr)
    sum_columns<T><<<dim3(blocks, static_cast<unsigned>((args.n + 255) / 256)), 256, 0, stream>>>(args);
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
        forward_packs<T, cuda::kPackWidth<T>><<<launch.blocks, launch.threads, 0, stream_of(cuda)>>>(forward);
        return;
      }
    }
    forward_rows<T><<<launch.blocks, launch.threads, 0, stream_of(cuda)>>>(forward);
  });
  check_cuda(cudaGetLastError(), LayerNormArgs::kName, cuda.device);
}

void run(const Cuda& cuda, const LayerNormBackwardArgs& args) {
  const std::int64_t n = args.x.size[args.x.ndim - 1], rows = cuda::rows_of(args.x);
  const bool has_sums = args.dweight.defined() || args.dbias.defined();
  visit_float(args.x.dtype, LayerNormBackwardArgs::kName, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = Computed<T>;
    const cudaStream_t stream = stream_of(cuda);
    if (rows > 0) {
      launch_backward<T>({args.x.as<T>(), args.weight.as<T>(), args.dy.as<T>(), args.dsum.as<T>(), args.mean.as<C>(),
                          args.rstd.as<C>(), args.dx.as<T>(), has_sums ? args.workspace.as<C>() : nullptr, rows, n},
                         cuda::rows_fit(n, {&args.x, &args.weight, &args.dy, &args.dsum, &args.dx}), stream);
    }
    if (!has_sums) return;
    add_lines<T><<<static_cast<unsigned>((2 * n + 31) / 32), dim3(32, 32), 0, stream>>>(
        args.workspace.as<C>(), (rows + kLayerNormRows - 1) / kLayerNormRows, n, args.dweight.as<T>(),
        args.dbias.as<T>());
  });
  check_cuda(cudaGetLastError(), LayerNormBackwardArgs::kName, cuda.device);
}

}  // namespace castor
