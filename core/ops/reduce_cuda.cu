// Reductions on CUDA, by the CPU's plan and in its order: a warp folds a piece of at most 1024 elements as 32 chains,
// or a thread folds 128 rows of its column; pieces and row blocks meet in f64 in order. So the bits are the CPU's.
//
// Delicate: where outputs are few, pieces are shared out over blocks and their sums meet in the workspace, whose size
// the plan fixed.
#include "core/device/cuda_runtime.h"
#include "core/ops/reduce_ops.h"
#include "core/ops/rows_cuda.cuh"

namespace castor {
namespace {

using cuda::RowTeam;

/// Folds elements with numbers first, first + step, ... below n, each read by at(number).
///   join  what makes one number of the chains: the lanes of a warp, or nothing
template <class Op, class C, class At, class Join>
__device__ Partial fold(int first, int step, int n, At at, Join join) {
  if constexpr (std::is_same_v<Op, reduction::LogSumExp>) {
    C max = -std::numeric_limits<C>::infinity(), sum = C(0);
    for (int e = first; e < n; e += step) max = larger(max, at(e));
    max = join(max, [](C a, C b) { return larger(a, b); });
    for (int e = first; e < n; e += step) sum += Op::template shifted_exp<C>(at(e), max);
    sum = join(sum, [](C a, C b) { return a + b; });
    return {static_cast<double>(max), static_cast<double>(sum)};
  } else if constexpr (std::is_same_v<Op, reduction::Variance>) {
    C mean = C(0), squares = C(0);
    for (int e = first; e < n; e += step) mean += at(e);
    mean = join(mean, [](C a, C b) { return a + b; }) / static_cast<C>(n);
    for (int e = first; e < n; e += step) squares += (at(e) - mean) * (at(e) - mean);
    squares = join(squares, [](C a, C b) { return a + b; });
    return {static_cast<double>(mean), static_cast<double>(squares)};
  } else {
    C value = Op::template start<C>();
#pragma unroll 8
    for (int e = first; e < n; e += step) value = Op::join(value, Op::map(at(e)));
    return {static_cast<double>(join(value, [](C a, C b) { return Op::join(a, b); })), 0};
  }
}

struct JoinLanes {
  template <class C, class F>
  __device__ C operator()(C value, F f) const {
    return cuda::join_lanes(value, f);
  }
};
struct JoinNothing {
  template <class C, class F>
  __device__ C operator()(C value, F) const {
    return value;
  }
};

/// One piece of an output, by a warp.
template <class Op, class T>
__device__ Partial fold_piece(const T* x, const ReducePiece& piece, int lane) {
  using C = Computed<T>;
  const int n = static_cast<int>(piece.numel());
  if (piece.runs == 1) {
    const T* const from = x + piece.offset(0);
    if (piece.stride == 1)
      return fold<Op, C>(
          lane, 32, n, [&](int e) { return cuda::read(from[e]); }, JoinLanes{});
    return fold<Op, C>(
        lane, 32, n, [&](int e) { return cuda::read(from[e * piece.stride]); }, JoinLanes{});
  }
  const int length = static_cast<int>(piece.length);
  return fold<Op, C>(
      lane, 32, n, [&](int e) { return cuda::read(x[piece.offset(e / length) + e % length * piece.stride]); },
      JoinLanes{});
}

template <class Op, class T>
struct Output {
  T* y;
  Computed<T>* mean;  // variance only; may be null
  double count;
  double correction;

  __device__ void write(std::int64_t at, const Partial& total) const {
    y[at] = store<T>(static_cast<Computed<T>>(Op::finish(total, count, correction)));
    if (mean != nullptr)
      mean[at] = static_cast<Computed<T>>(count == 0 ? std::numeric_limits<double>::quiet_NaN() : total.a);
  }
};

template <class Op>
__device__ void put(double* workspace, std::int64_t at, const Partial& part) {
  if constexpr (Op::kPaired) {
    workspace[2 * at] = part.a;
    workspace[2 * at + 1] = part.b;
  } else {
    workspace[at] = part.a;
  }
}

template <class Op>
__device__ Partial get(const double* workspace, std::int64_t at) {
  if constexpr (Op::kPaired) {
    return {workspace[2 * at], workspace[2 * at + 1]};
  } else {
    return {workspace[at], 0};
  }
}

/// A team a task: an output, or a part of one that goes to the workspace.
template <class Op, class T>
__global__ void __launch_bounds__(cuda::kTeamThreads)
    reduce_rows(const T* x, const __grid_constant__ ReducePlan plan, const Output<Op, T> output, double* workspace) {
  __shared__ Partial found[cuda::kMostWarps];
  const RowTeam team;
  const std::int64_t parts = plan.has_partials ? plan.parts : 1, task = team.row;
  if (task >= plan.outputs * parts) return;
  std::int64_t at_x, at_y;
  plan.kept.offsets(task / parts, plan.kept.ndim, at_x, at_y);
  const std::int64_t begin = plan.has_partials ? task % parts * plan.pieces_per_part : 0;
  const std::int64_t end =
      plan.has_partials && begin + plan.pieces_per_part < plan.pieces ? begin + plan.pieces_per_part : plan.pieces;
  Partial total = Op::identity();
  double count = 0;
  const auto merge = [&](std::int64_t index, const Partial& part) {
    const double elements = static_cast<double>(plan.piece(index).numel());
    Op::merge(total.a, total.b, count, part.a, part.b, elements);
    count += elements;
  };
  for (std::int64_t first = begin; first < end; first += team.warps) {
    const std::int64_t own = first + team.warp;
    Partial part{};
    if (own < end) part = fold_piece<Op>(x + at_x, plan.piece(own), team.lane);
    if (team.warps == 1) {
      merge(own, part);
      continue;
    }
    if (team.lane == 0) found[team.warp] = part;
    __syncthreads();
    for (int w = 0; w < team.warps && first + w < end; ++w) merge(first + w, found[w]);
    __syncthreads();
  }
  if (team.lane != 0 || team.warp != 0) return;
  if (plan.has_partials) {
    put<Op>(workspace, task, total);
  } else {
    output.write(at_y, total);
  }
}

constexpr int kColumnWarps = 8;  // of a block of threads: so many row blocks at a time, of one or more tiles of columns

/// A tile is 32 columns of a slab: warp (y, z) has row blocks y, y + blockDim.y, ... of tile z of its block; with
/// partials one of them, else all. Blocks beside each other take `tile_blocks` blocks of tiles, then the next rows.
template <class Op, class T>
__global__ void __launch_bounds__(32 * kColumnWarps)
    reduce_columns(const T* x, const __grid_constant__ ReducePlan plan, const Output<Op, T> output, double* workspace,
                   unsigned tile_blocks) {
  using C = Computed<T>;
  __shared__ Partial all_found[kColumnWarps][32];
  const int inner = plan.kept.ndim - 1, lane = static_cast<int>(threadIdx.x), own = static_cast<int>(threadIdx.y);
  const int at_once = static_cast<int>(blockDim.y);
  const auto found = all_found + at_once * threadIdx.z;
  const std::int64_t tiles = (plan.columns + 31) / 32;
  const std::int64_t tile = static_cast<std::int64_t>(blockIdx.x % tile_blocks) * blockDim.z + threadIdx.z,
                     slab = tile / tiles;
  const std::int64_t column = tile % tiles * 32 + lane;
  const bool is_live = slab < plan.slabs && column < plan.columns;
  std::int64_t at_x, at_y;
  plan.kept.offsets(is_live ? slab : 0, inner, at_x, at_y);
  const T* const from = x + at_x + column * plan.kept.x_stride[inner];
  const auto rows_in = [&](std::int64_t block) {
    const std::int64_t left = plan.count - block * ReducePlan::kRowBlock;
    return static_cast<int>(left < ReducePlan::kRowBlock ? left : ReducePlan::kRowBlock);
  };
  const auto fold_block = [&](std::int64_t block) {
    const std::int64_t first_row = block * ReducePlan::kRowBlock;
    if (plan.reduced.ndim == 1) {
      const std::int64_t step = plan.reduced.x_stride[0];
      return fold<Op, C>(
          0, 1, rows_in(block), [&](int r) { return cuda::read(from[(first_row + r) * step]); }, JoinNothing{});
    }
    return fold<Op, C>(
        0, 1, rows_in(block),
        [&](int r) {
          std::int64_t row, ignored;
          plan.reduced.offsets(first_row + r, plan.reduced.ndim, row, ignored);
          return cuda::read(from[row]);
        },
        JoinNothing{});
  };
  if (plan.has_partials) {
    const std::int64_t block = static_cast<std::int64_t>(blockIdx.x / tile_blocks) * at_once + own;
    if (is_live && block < plan.row_blocks)
      put<Op>(workspace, block * plan.outputs + slab * plan.columns + column, fold_block(block));
    return;
  }
  Partial total = Op::identity();
  double count = 0;
  for (std::int64_t first = 0; first < plan.row_blocks; first += at_once) {
    if (is_live && first + own < plan.row_blocks) found[own][lane] = fold_block(first + own);
    __syncthreads();
    for (int k = 0; own == 0 && is_live && k < at_once && first + k < plan.row_blocks; ++k) {
      const double rows = static_cast<double>(rows_in(first + k));
      Op::merge(total.a, total.b, count, found[k][lane].a, found[k][lane].b, rows);
      count += rows;
    }
    __syncthreads();
  }
  if (own == 0 && is_live) output.write(at_y + column * plan.kept.y_stride[inner], total);
}

/// A thread an output: what lies in the workspace, in order.
template <class Op, class T>
__global__ void __launch_bounds__(32)
    join_partials(const __grid_constant__ ReducePlan plan, const Output<Op, T> output, const double* workspace) {
  const std::int64_t k = static_cast<std::int64_t>(blockIdx.x) * 32 + threadIdx.x;
  if (k >= plan.outputs) return;
  std::int64_t ignored, at_y;
  plan.kept.offsets(k, plan.kept.ndim, ignored, at_y);
  Partial total = Op::identity();
  double count = 0;
  const std::int64_t parts = plan.by_columns ? plan.row_blocks : plan.parts;
#pragma unroll 16  // what bounds it is how many numbers are on their way
  for (std::int64_t part = 0; part < parts; ++part) {
    double elements = 0;
    if constexpr (std::is_same_v<Op, reduction::Variance>) {
      if (plan.by_columns) {
        const std::int64_t left = plan.count - part * ReducePlan::kRowBlock;
        elements = static_cast<double>(left < ReducePlan::kRowBlock ? left : ReducePlan::kRowBlock);
      } else {
        for (std::int64_t i = part * plan.pieces_per_part; i < (part + 1) * plan.pieces_per_part && i < plan.pieces;
             ++i)
          elements += static_cast<double>(plan.piece(i).numel());
      }
    }
    const Partial found = get<Op>(workspace, plan.by_columns ? part * plan.outputs + k : k * parts + part);
    Op::merge(total.a, total.b, count, found.a, found.b, elements);
    count += elements;
  }
  output.write(at_y, total);
}

template <class Op, class T>
void run_op(const Cuda& cuda, const ReduceArgs& args, const ReducePlan& plan) {
  using C = Computed<T>;
  const cudaStream_t stream = stream_of(cuda);
  double* const workspace = args.workspace.as<double>();
  const Output<Op, T> output{args.y.as<T>(), args.mean.defined() ? args.mean.as<C>() : nullptr,
                             static_cast<double>(plan.count), args.correction};
  if (plan.by_columns) {
    const std::int64_t tiles = (plan.columns + 31) / 32 * plan.slabs;
    int at_once = 1;
    while (at_once < kColumnWarps && at_once < plan.row_blocks) at_once *= 2;
    const int beside = kColumnWarps / at_once;
    const std::int64_t tile_blocks = (tiles + beside - 1) / beside,
                       row_groups = plan.has_partials ? (plan.row_blocks + at_once - 1) / at_once : 1;
    const dim3 threads(32, static_cast<unsigned>(at_once), static_cast<unsigned>(beside));
    reduce_columns<Op, T><<<static_cast<unsigned>(tile_blocks * row_groups), threads, 0, stream>>>(
        args.x.as<T>(), plan, output, workspace, static_cast<unsigned>(tile_blocks));
  } else {
    const std::int64_t pieces = plan.has_partials ? plan.pieces_per_part : plan.pieces;
    const cuda::TeamLaunch launch(plan.outputs * (plan.has_partials ? plan.parts : 1), pieces * kSumBlock);
    reduce_rows<Op, T><<<launch.blocks, launch.threads, 0, stream>>>(args.x.as<T>(), plan, output, workspace);
  }
  check_cuda(cudaGetLastError(), ReduceArgs::kName, cuda.device);
  if (!plan.has_partials) return;
  join_partials<Op, T><<<static_cast<unsigned>((plan.outputs + 31) / 32), 32, 0, stream>>>(plan, output, workspace);
  check_cuda(cudaGetLastError(), ReduceArgs::kName, cuda.device);
}

template <class T>
void run_dtype(const Cuda& cuda, const ReduceArgs& args) {
  using reduction::Simple;
  const ReducePlan plan(args.x, args.y, args.axes);
  if (plan.outputs == 0) return;
  switch (args.op) {
    case ReduceOp::sum:
      return run_op<Simple<ReduceOp::sum>, T>(cuda, args, plan);
    case ReduceOp::mean:
      return run_op<Simple<ReduceOp::mean>, T>(cuda, args, plan);
    case ReduceOp::max:
      return run_op<Simple<ReduceOp::max>, T>(cuda, args, plan);
    case ReduceOp::min:
      return run_op<Simple<ReduceOp::min>, T>(cuda, args, plan);
    case ReduceOp::norm1:
      return run_op<Simple<ReduceOp::norm1>, T>(cuda, args, plan);
    case ReduceOp::norm2:
      return run_op<Simple<ReduceOp::norm2>, T>(cuda, args, plan);
    case ReduceOp::norm_inf:
      return run_op<Simple<ReduceOp::norm_inf>, T>(cuda, args, plan);
    case ReduceOp::logsumexp:
      return run_op<reduction::LogSumExp, T>(cuda, args, plan);
    case ReduceOp::variance:
      return run_op<reduction::Variance, T>(cuda, args, plan);
  }
}

}  // namespace

void run(const Cuda& cuda, const ReduceArgs& args) {
  if (args.x.dtype == DType::f64) return run_dtype<double>(cuda, args);
  visit_training_float(args.x.dtype, ReduceArgs::kName,
                       [&](auto tag) { run_dtype<typename decltype(tag)::type>(cuda, args); });
}

}  // namespace castor
