// Gradients of layer and rms norm on CUDA. Blocks walk through the rows side by side; their warps keep the sums for
// dweight and dbias of their columns in registers while they make dx row by row, the next rows on their way to shared
// memory, join the sums and leave one line in the workspace; a second kernel adds the lines in f64. So memory sees x,
// dy, dsum and dx once. Rows of 16 bits cost as many instructions as memory allows, so narrow ones keep what dx is made
// of in registers from the row's sums to dx.
//
// Delicate: which rows meet when depends on the shape, on addresses (words of 16 bytes or not) and on how much shared
// memory the GPU gives a block, on nothing else. The warps of one row meet at a barrier of their own. Rows of more than
// 16384 numbers, rows that cannot be moved in words of 16 bytes, rows too long for the GPU's shared memory and f64 go
// through kernels of their own, which read x and dy twice. More rows on their way than two a team made it slower on an
// H200.
#include "core/ops/line_sums_cuda.cuh"
#include "core/ops/norm.h"
#include "core/ops/row_packs_cuda.cuh"

namespace castor {
namespace {

using cuda::Computed;
using cuda::RowTeam;
using cuda::visit_float;

constexpr std::int64_t kBlocks = 132;             // what a large GPU holds at a time
constexpr std::int64_t kMostRows = 1 << 30;       // that are counted in 32 bits
constexpr int kShortSteps = 1, kMiddleSteps = 2;  // packs of a row that a lane has; rows of more have kSumBlock a warp
constexpr std::int64_t kMostNarrow = 4096;        // columns of a row of kMiddleSteps

/// Threads that the registers of so many steps leave room for.
template <int kSteps>
constexpr int kMostThreads = kSteps == kShortSteps ? 896 : 512;
template <int kSteps>
constexpr bool kHoldsTerms = kSteps <= kMiddleSteps;
/// Rows that a team has on their way: what fits in shared memory.
template <class T, int kSteps>
constexpr int kStages = sizeof(T) == 4 && kSteps > kMiddleSteps ? 1 : 2;

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

/// The lanes' a added up in lanes 0 to 15, their b in the others.
template <class C>
__device__ C add_two(int lane, C a, C b) {
  constexpr unsigned kAll = 0xFFFFFFFFu;
  const bool is_upper = lane >= 16;
  C sum = (is_upper ? b : a) + __shfl_xor_sync(kAll, is_upper ? a : b, 16);
  for (int width = 8; width > 0; width /= 2) sum += __shfl_xor_sync(kAll, sum, width);
  return sum;
}

template <class T, int V>
__device__ cuda::Pack<T, V> ones() {
  cuda::Pack<T, V> pack;
  for (int e = 0; e < V; ++e) pack.value[e] = cuda::write<T>(1.0f);
  return pack;
}

/// Rows in words of 16 bytes, kSteps of them a lane. A lane reads from shared memory what it copied there itself.
template <class T, int kSteps, bool kHasDsum>
__global__ void __launch_bounds__(kMostThreads<kSteps>, 1) backward_blocks(const Backward<T> args) {
  using C = Computed<T>;
  constexpr int V = cuda::kPackWidth<T>, kColumns = kSteps * 32 * V;
  constexpr int kStageBytes = (kHasDsum ? 3 : 2) * kColumns * static_cast<int>(sizeof(T));
  constexpr int kAhead = kStages<T, kSteps>, kHeld = kHoldsTerms<kSteps> ? kSteps : 1;
  using Row = cuda::Pack<T, V>;
  extern __shared__ __align__(16) char shared_bytes[];
  __shared__ __align__(8) C parts[2][kMostThreads<kSteps> / 32][2];
  const RowTeam team;
  const int n = static_cast<int>(args.n), begin = team.warp * kColumns + team.lane * V;
  const int groups = static_cast<int>(blockDim.z), group = static_cast<int>(threadIdx.z);
  const int left = min(n, (team.warp + 1) * kColumns) - begin;
  char* const stages = shared_bytes + team.slot * kAhead * kStageBytes + team.lane * 16;
  const int rows = static_cast<int>(args.rows), first = static_cast<int>(blockIdx.x) * groups + group,
            step = static_cast<int>(gridDim.x) * groups, stride = step * n;
  const bool has_weight = args.weight != nullptr;
  std::int64_t at = static_cast<std::int64_t>(first) * n + begin;
  const auto copy_row = [&](int row, std::int64_t from, int stage) {
    if (row < rows) {
      T* const to = reinterpret_cast<T*>(stages + stage * kStageBytes);
      const T *const x = args.x + from, *const dy = args.dy + from;
      cuda::for_lane<kSteps, V>(left, [&](int, int i) {
        cuda::copy_ahead(to + i, x + i);
        cuda::copy_ahead(to + kColumns + i, dy + i);
      });
      if constexpr (kHasDsum) {
        const T* const dsum = args.dsum + from;
        cuda::for_lane<kSteps, V>(left, [&](int, int i) { cuda::copy_ahead(to + 2 * kColumns + i, dsum + i); });
      }
    }
    cuda::end_copies();
  };
  C next_mean = C(0), next_rstd = C(0);
  const auto read_statistics = [&](int row) {
    if (row >= rows) return;
    next_rstd = args.rstd[row];
    if (args.mean != nullptr) next_mean = args.mean[row];
  };
  read_statistics(first);
#pragma unroll
  for (int k = 0; k < kAhead; ++k) copy_row(first + k * step, at + k * stride, k);
  Row held_weight[kHeld];
  const auto weight_at = [&](int i) { return has_weight ? cuda::pack_at<V>(args.weight + begin + i) : ones<T, V>(); };
  if constexpr (kHoldsTerms<kSteps>) {
    cuda::for_lane<kSteps, V>(left, [&](int k, int i) { held_weight[k] = weight_at(i); });
  }
  const C share = C(1) / static_cast<C>(n);
  C dweight[kSteps][V] = {}, dbias[kSteps][V] = {};
  int turn = 0;  // 0 or 1
  int row = first;
  for (; row < rows; row += step, at += stride, turn = 1 - turn) {
    const int stage = turn % kAhead;
    const C rstd = next_rstd, offset = -next_mean * rstd;  // xhat = x * rstd + offset
    read_statistics(row + step);
    cuda::wait_copies<kAhead - 1>();
    const T* const x_row = reinterpret_cast<const T*>(stages + stage * kStageBytes);
    C xhat[kHeld][V], g[kHeld][V];
    const auto make_terms = [&](int k, int i) {
      const auto x = cuda::numbers(cuda::pack_at<V>(x_row + i)),
                 d = cuda::numbers(cuda::pack_at<V>(x_row + kColumns + i));
      const auto weight = cuda::numbers(kHoldsTerms<kSteps> ? held_weight[k % kHeld] : weight_at(i));
      for (int e = 0; e < V; ++e) {
        xhat[k % kHeld][e] = math::fma(x.value[e], rstd, offset);
        g[k % kHeld][e] = d.value[e] * weight.value[e];
      }
      return d;
    };
    C a = C(0), b = C(0);
    cuda::for_lane<kSteps, V>(left, [&](int k, int i) {
      const auto d = make_terms(k, i);
      for (int e = 0; e < V; ++e) {
        a += g[k % kHeld][e];
        b = math::fma(g[k % kHeld][e], xhat[k % kHeld][e], b);
        dweight[k][e] = math::fma(d.value[e], xhat[k % kHeld][e], dweight[k][e]);
        dbias[k][e] += d.value[e];
      }
    });
    if (args.dx != nullptr) {
      const C sum = add_two(team.lane, a, b);
      if (team.warps > 1) {
        // Two lines of parts, so that a warp may be a row ahead of one that still reads.
        auto* const line = parts[turn];
        if (team.lane % 16 == 0) line[team.slot][team.lane / 16] = sum;
        cuda::meet_team(group, 32 * team.warps);
        a = b = C(0);
#pragma unroll 1
        for (int slot = team.slot - team.warp, w = 0; w < team.warps; ++w, ++slot) {
          const float2 part = *reinterpret_cast<const float2*>(line[slot]);
          a += part.x;
          b += part.y;
        }
      } else {
        a = __shfl_sync(0xFFFFFFFFu, sum, 0);
        b = __shfl_sync(0xFFFFFFFFu, sum, 16);
      }
      const C average = args.mean != nullptr ? a * share * rstd : C(0), slope = b * share * rstd;
      cuda::for_lane<kSteps, V>(left, [&](int k, int i) {
        if constexpr (!kHoldsTerms<kSteps>) make_terms(k, i);
        C dx[V];
        for (int e = 0; e < V; ++e)
          dx[e] = math::fma(g[k % kHeld][e], rstd, math::fma(-xhat[k % kHeld][e], slope, -average));
        if constexpr (kHasDsum) {
          const auto dsum = cuda::numbers(cuda::pack_at<V>(x_row + 2 * kColumns + i));
          for (int e = 0; e < V; ++e) dx[e] += dsum.value[e];
        }
        cuda::store_pack(args.dx + at + i, cuda::rounded<T, V>(dx));
      });
    }
    copy_row(row + kAhead * step, at + kAhead * stride, stage);
  }
  if (args.sums == nullptr) return;
  // A group with a row less meets as often as the others: racecheck (CUDA 13.0) loses the block's barriers otherwise.
  if (row - group < rows && team.warps > 1 && args.dx != nullptr) cuda::meet_team(group, 32 * team.warps);
  // The groups' sums meet in order, in the memory of the stages.
  cuda::wait_copies<0>();
  __syncthreads();
  C* const shared = reinterpret_cast<C*>(shared_bytes);
  cuda::for_lane<kSteps, V>(left, [&](int k, int i) {
    C* const to = shared + group * 2 * n + begin + i;
    for (int e = 0; e < V; e += 4) {
      *reinterpret_cast<float4*>(to + e) = {dweight[k][e], dweight[k][e + 1], dweight[k][e + 2], dweight[k][e + 3]};
      *reinterpret_cast<float4*>(to + n + e) = {dbias[k][e], dbias[k][e + 1], dbias[k][e + 2], dbias[k][e + 3]};
    }
  });
  __syncthreads();
  for (int i = team.slot * 32 + team.lane; i < 2 * n; i += 32 * team.warps * groups) {
    C sum = shared[i];
    for (int other = 1; other < groups; ++other) sum += shared[other * 2 * n + i];
    args.sums[static_cast<std::int64_t>(blockIdx.x) * 2 * n + i] = sum;
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

/// Returns the number of blocks, at most one for each line of the workspace; 0 where a block cannot have the shared
/// memory that even one row at a time needs. GPUs that give a block less have fewer rows at a time.
template <int kSteps, bool kHasDsum, class T>
std::int64_t launch_blocks(const Backward<T>& args, const Cuda& cuda) {
  constexpr const char* kOp = LayerNormBackwardArgs::kName;
  const std::size_t of_sums = 2 * sizeof(float) * static_cast<std::size_t>(args.n);  // of a row's team, at the end
  const cuda::RowPlan plan(args.n, kSteps * 32 * cuda::kPackWidth<T>, kMostThreads<kSteps>,
                           kStages<T, kSteps> * (kHasDsum ? 3 : 2) * sizeof(T), of_sums,
                           most_shared_bytes(kOp, cuda.device));
  if (plan.groups == 0) return 0;
  const std::int64_t blocks = std::min(kBlocks, (args.rows + kLayerNormRows - 1) / kLayerNormRows);
  const auto kernel = backward_blocks<T, kSteps, kHasDsum>;
  check_cuda(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(plan.shared_bytes)),
      kOp, cuda.device);
  kernel<<<static_cast<unsigned>(blocks), plan.threads(), plan.shared_bytes, stream_of(cuda)>>>(args);
  return blocks;
}

template <int kSteps, class T>
std::int64_t launch_blocks(const Backward<T>& args, const Cuda& cuda) {
  return args.dsum != nullptr ? launch_blocks<kSteps, true>(args, cuda) : launch_blocks<kSteps, false>(args, cuda);
}

/// Rows in words of 16 bytes; as launch_blocks.
template <class T>
std::int64_t launch_packs(const Backward<T>& args, const Cuda& cuda) {
  constexpr int kLane = 32 * cuda::kPackWidth<T>;  // columns of a warp for each step
  if (args.n <= 4 * kShortSteps * kLane) return launch_blocks<kShortSteps>(args, cuda);
  if (args.n <= kMostNarrow) return launch_blocks<kMiddleSteps>(args, cuda);
  if (args.n <= cuda::kHeldElements) return launch_blocks<static_cast<int>(kSumBlock) / kLane>(args, cuda);
  return 0;
}

/// Returns the number of lines it leaves in the workspace.
template <class T>
std::int64_t launch_backward(const Backward<T>& args, bool fits, const Cuda& cuda) {
  if constexpr (!std::is_same_v<T, double>) {
    if (const std::int64_t blocks = fits ? launch_packs(args, cuda) : 0; blocks > 0) return blocks;
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
          rows < kMostRows && cuda::rows_fit(n, {&args.x, &args.weight, &args.dy, &args.dsum, &args.dx}), cuda);
    }
    if (!has_sums) return;
    cuda::add_lines(cuda, args.workspace.as<C>(), lines, 2 * n, n, args.dweight.as<T>(), args.dbias.as<T>());
  });
  check_cuda(cudaGetLastError(), LayerNormBackwardArgs::kName, cuda.device);
}

}  // namespace castor
