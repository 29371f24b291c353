// Gradients of layer and rms norm on CUDA. Blocks walk through the rows side by side; their warps keep the sums for
// dweight and dbias of their columns in registers while they make dx row by row, the next rows on their way to shared
// memory, join the sums and leave one line in the workspace; a second kernel adds the lines in f64. So memory sees x,
// dy, dsum and dx once.
//
// Delicate: which rows meet when depends on the shape alone. The warps of one row meet at a barrier of their own. Rows
// of more than 16384 numbers, rows that are no multiple of 16 bytes, and f64 go through kernels of their own, which
// read x and dy twice. Reading a row's statistics a row ahead made it slower on an H100.
#include "core/ops/norm.h"
#include "core/ops/row_packs_cuda.cuh"

namespace castor {
namespace {

using cuda::RowTeam;

template <class T>
using Computed = decltype(load(T{}));

using cuda::kNarrow;

constexpr std::size_t kMostShared = 200 << 10;  // bytes of a block

/// How rows are given to blocks that copy ahead. Teams of `warps` warps, `groups` of them a block, take neighbouring
/// rows, so that all running blocks walk through memory side by side. Each warp copies its columns of the rows to come
/// to shared memory, `stages` of them, while it works on a row.
struct RowPlan {
  std::int64_t blocks;
  unsigned warps, groups;
  int stages;
  std::size_t stage_bytes;  ///< of a warp

  /// `most_blocks` are what the multiprocessors of a large GPU hold at a time; the plan depends on nothing else of it.
  RowPlan(std::int64_t rows, std::int64_t n, std::int64_t columns, std::int64_t most_blocks, std::size_t operands,
          std::size_t element) {
    warps = static_cast<unsigned>((n + columns - 1) / columns);
    groups = std::max(1u, 8 / warps);
    blocks = std::min<std::int64_t>(most_blocks, (rows + groups - 1) / groups);
    stage_bytes = operands * static_cast<std::size_t>(columns) * element;
    stages = 2 * stage_bytes * warps * groups <= kMostShared ? 2 : 1;
  }
  std::size_t shared_bytes() const { return stage_bytes * warps * groups * static_cast<std::size_t>(stages); }
  dim3 threads() const { return dim3(32, warps, groups); }
};

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

/// Rows in words of 16 bytes, kColumns of them a warp. A lane reads from shared memory what it copied there itself.
template <class T, int V, int kColumns, int kStages>
__global__ void __launch_bounds__(kColumns == kNarrow ? 256 : cuda::kTeamThreads, kColumns == kNarrow ? 2 : 1)
    backward_blocks(const Backward<T> args, int stage_bytes) {
  using C = Computed<T>;
  using Row = cuda::Pack<T, V>;
  constexpr int kSteps = kColumns / (32 * V);
  extern __shared__ __align__(16) char shared_bytes[];
  __shared__ float2 parts[2][cuda::kMostWarps];
  const RowTeam team;
  const int n = static_cast<int>(args.n), begin = team.warp * kColumns + team.lane * V;
  const int groups = static_cast<int>(blockDim.z), group = static_cast<int>(threadIdx.z);
  const int left = min(n, (team.warp + 1) * kColumns) - begin;
  char* const stages = shared_bytes + team.slot * kStages * stage_bytes + team.lane * 16;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * groups + group,
                     step = static_cast<std::int64_t>(gridDim.x) * groups;
  const bool has_weight = args.weight != nullptr, has_dsum = args.dsum != nullptr;
  const auto copy_row = [&](std::int64_t row, int stage) {
    if (row < args.rows) {
      T* const to = reinterpret_cast<T*>(stages + stage * stage_bytes);
      const T *const x = args.x + row * n + begin, *const dy = args.dy + row * n + begin;
      cuda::for_lane<kSteps, V>(left, [&](int, int i) {
        cuda::copy_ahead(to + i, x + i);
        cuda::copy_ahead(to + kColumns + i, dy + i);
      });
      if (has_dsum) {
        const T* const dsum = args.dsum + row * n + begin;
        cuda::for_lane<kSteps, V>(left, [&](int, int i) { cuda::copy_ahead(to + 2 * kColumns + i, dsum + i); });
      }
    }
    cuda::end_copies();
  };
#pragma unroll
  for (int stage = 0; stage < kStages; ++stage) copy_row(first + stage * step, stage);
  const T* const weights = args.weight + begin;
  const C share = C(1) / static_cast<C>(n);
  C dweight[kSteps][V] = {}, dbias[kSteps][V] = {};
  int turn = 0;
  for (std::int64_t row = first; row < args.rows; row += step, ++turn) {
    const int stage = turn % kStages;
    const C mean = args.mean != nullptr ? args.mean[row] : C(0), rstd = args.rstd[row];
    cuda::wait_copies<kStages - 1>();
    const T* const x_row = reinterpret_cast<const T*>(stages + stage * stage_bytes);
    T* const dx_row = args.dx + row * n + begin;
    const C offset = -mean * rstd;  // of xhat = x * rstd + offset
    C average = C(0), slope = C(0);
    if (args.dx != nullptr) {
      C a = C(0), b = C(0);
      cuda::for_lane<kSteps, V>(left, [&](int, int i) {
        const Row x = cuda::pack_at<V>(x_row + i), dy = cuda::pack_at<V>(x_row + kColumns + i);
        Row weight{};
        if (has_weight) weight = cuda::pack_at<V>(weights + i);
        for (int e = 0; e < V; ++e) {
          C g = cuda::read(dy.value[e]);
          if (has_weight) g *= cuda::read(weight.value[e]);
          a += g;
          b = math::fma(g, math::fma(cuda::read(x.value[e]), rstd, offset), b);
        }
      });
      a = cuda::join_lanes(a, cuda::AddLanes{});
      b = cuda::join_lanes(b, cuda::AddLanes{});
      if (team.warps > 1) {
        // Two lines of parts, so that a warp may be a row ahead of one that still reads.
        if (team.lane == 0) parts[turn % 2][team.slot] = {a, b};
        cuda::meet_team(group, 32 * team.warps);
        a = b = C(0);
        for (int w = 0; w < team.warps; ++w) {
          const float2 part = parts[turn % 2][team.slot - team.warp + w];
          a += part.x;
          b += part.y;
        }
      }
      if (args.mean != nullptr) average = a * share * rstd;
      slope = b * share * rstd;
    }
    cuda::for_lane<kSteps, V>(left, [&](int k, int i) {
      const Row x = cuda::pack_at<V>(x_row + i), dy = cuda::pack_at<V>(x_row + kColumns + i);
      Row weight{}, dsum{};
      C dx[V];
      if (has_weight) weight = cuda::pack_at<V>(weights + i);
      if (has_dsum) dsum = cuda::pack_at<V>(x_row + 2 * kColumns + i);
      for (int e = 0; e < V; ++e) {
        const C xhat = math::fma(cuda::read(x.value[e]), rstd, offset), d = cuda::read(dy.value[e]);
        const C g = has_weight ? d * cuda::read(weight.value[e]) : d;
        dx[e] = math::fma(g, rstd, math::fma(-xhat, slope, -average));
        if (has_dsum) dx[e] += cuda::read(dsum.value[e]);
        dweight[k][e] = math::fma(d, xhat, dweight[k][e]);
        dbias[k][e] += d;
      }
      if (args.dx != nullptr) cuda::store_pack(dx_row + i, cuda::rounded<T, V>(dx));
    });
    copy_row(row + kStages * step, stage);
  }
  if (args.sums == nullptr) return;
  // The groups' sums, one after another, in the memory of the stages.
  cuda::wait_copies<0>();
  __syncthreads();
  C* const shared = reinterpret_cast<C*>(shared_bytes);
  C* const line = args.sums + blockIdx.x * 2 * n;
  const auto add_group = [&](C* to) {
    cuda::for_lane<kSteps, V>(left, [&](int k, int i) {
      const int at = begin + i;
      for (int e = 0; e < V; ++e) {
        to[at + e] = group > 0 ? shared[at + e] + dweight[k][e] : dweight[k][e];
        to[n + at + e] = group > 0 ? shared[n + at + e] + dbias[k][e] : dbias[k][e];
      }
    });
  };
  for (int next = 0; next < groups - 1; ++next) {
    if (next == group) add_group(shared);
    __syncthreads();
  }
  if (group == groups - 1) add_group(args.sums + blockIdx.x * 2 * n);
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
#pragma unroll 8
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

/// Returns the number of blocks, at most one for each line of the workspace.
template <int kColumns, class T>
std::int64_t launch_blocks(const Backward<T>& args, std::int64_t most_blocks, const Cuda& cuda) {
  RowPlan plan(args.rows, args.n, kColumns, most_blocks, args.dsum != nullptr ? 3 : 2, sizeof(T));
  plan.blocks = std::min(plan.blocks, (args.rows + kLayerNormRows - 1) / kLayerNormRows);
  const auto launch = [&](auto kernel) {
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(plan.shared_bytes())),
               LayerNormBackwardArgs::kName, cuda.device);
    kernel<<<static_cast<unsigned>(plan.blocks), plan.threads(), plan.shared_bytes(), stream_of(cuda)>>>(
        args, static_cast<int>(plan.stage_bytes));
  };
  constexpr int V = cuda::kPackWidth<T>;
  plan.stages == 2 ? launch(backward_blocks<T, V, kColumns, 2>) : launch(backward_blocks<T, V, kColumns, 1>);
  return plan.blocks;
}

/// Returns the number of lines it leaves in the workspace.
template <class T>
std::int64_t launch_backward(const Backward<T>& args, bool fits, const Cuda& cuda) {
  if constexpr (!std::is_same_v<T, double>) {
    if (fits && args.n <= cuda::kHeldElements) {
      return args.n <= cuda::kMostNarrow ? launch_blocks<kNarrow>(args, 264, cuda)
                                         : launch_blocks<kSumBlock>(args, 264, cuda);
    }
  }
  const std::int64_t blocks = (args.rows + kLayerNormRows - 1) / kLayerNormRows;
  if (args.dx != nullptr) {
    const cuda::TeamLaunch launch(args.rows, args.n);
    backward_rows<T><<<launch.blocks, launch.threads, 0, stream_of(cuda)>>>(args);
  }
  if (args.sums != nullptr) {
    const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>((args.n + 255) / 256));
    sum_columns<T><<<grid, 256, 0, stream_of(cuda)>>>(args);
  }
  return blocks;
}

}  // namespace

void run(const Cuda& cuda, const LayerNormBackwardArgs& args) {
  const std::int64_t n = args.x.size[args.x.ndim - 1], rows = cuda::rows_of(args.x);
  const bool has_sums = args.dweight.defined() || args.dbias.defined();
  visit_float(args.x.dtype, LayerNormBackwardArgs::kName, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = Computed<T>;
    std::int64_t lines = 0;
    if (rows > 0) {
      lines = launch_backward<T>(
          {args.x.as<T>(), args.weight.as<T>(), args.dy.as<T>(), args.dsum.as<T>(), args.mean.as<C>(),
           args.rstd.as<C>(), args.dx.as<T>(), has_sums ? args.workspace.as<C>() : nullptr, rows, n},
          cuda::rows_fit(n, {&args.x, &args.weight, &args.dy, &args.dsum, &args.dx}), cuda);
    }
    if (!has_sums) return;
    add_lines<T><<<static_cast<unsigned>((2 * n + 31) / 32), dim3(32, 32), 0, stream_of(cuda)>>>(
        args.workspace.as<C>(), lines, n, args.dweight.as<T>(), args.dbias.as<T>());
  });
  check_cuda(cudaGetLastError(), LayerNormBackwardArgs::kName, cuda.device);
}

}  // namespace castor
