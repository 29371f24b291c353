// Adafactor on CUDA. Delicate: rows and columns do not follow blocks. A row's sum is taken by a warp, by pieces within
// blocks of the logical tensor, in f32 chains and then f64; a column's by a thread, in f64, row by row: the CPU's
// order.
#include <cmath>

#include "core/ops/optim_cuda.cuh"

namespace castor {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) row_squares(cuda::AnyGradient gradient, double* sums, FactoredShape shape,
                                                        std::int64_t begin, std::int64_t end, float factor) {
  const std::int64_t row =
      begin / shape.columns + (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) / 32;
  std::int64_t at = row * shape.columns, row_end = at + shape.columns;
  if (at >= end) return;
  if (at < begin) at = begin;
  if (row_end > end) row_end = end;
  double sum = sums[row];
  while (at < row_end) {
    const std::int64_t block_end = (at / kStatisticsBlock + 1) * kStatisticsBlock;
    const std::int64_t piece_end = block_end < row_end ? block_end : row_end;
    sum += static_cast<double>(
        cuda::sum_squares_of(at, piece_end, [&](std::int64_t i) { return factor * gradient(i - begin); }));
    at = piece_end;
  }
  if (threadIdx.x % 32 == 0) sums[row] = sum;
}

__global__ void __launch_bounds__(kThreads)
    column_squares(cuda::AnyGradient gradient, double* sums, FactoredShape shape, std::int64_t begin, std::int64_t end,
                   float factor) {
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (column >= shape.columns) return;
  const std::int64_t last_row = (end + shape.columns - 1) / shape.columns;
  for (std::int64_t row = begin / shape.columns; row < last_row; ++row) {
    const std::int64_t at = row * shape.columns + column;
    if (at < begin || at >= end) continue;
    double& sum = sums[row / shape.rows * shape.columns + column];
    const double g = static_cast<double>(factor * gradient(at - begin));
    sum = math::fma(g, g, sum);
  }
}

/// One of the two moments. fresh = beta2 old + (1 - beta2) (sum / length + epsilon), or old where there are no sums.
struct Moments {
  const float* old;
  const double* sums;
  float* fresh;  // may be nullptr
  double length, beta2, epsilon;
  __device__ float operator()(std::int64_t i) const {
    const double before = static_cast<double>(old[i]);
    const float value =
        static_cast<float>(sums != nullptr ? beta2 * before + (1 - beta2) * (sums[i] / length + epsilon) : before);
    if (fresh == nullptr) return old[i];
    fresh[i] = value;
    return value;
  }
};

/// A block of threads a batch; thread 0 adds the rows in order.
__global__ void __launch_bounds__(kThreads) row_moments(const Moments moments, float* factors, std::int64_t rows) {
  __shared__ double shared_mean;
  const std::int64_t first = blockIdx.x * rows;
  for (std::int64_t r = threadIdx.x; r < rows; r += kThreads) factors[first + r] = moments(first + r);
  __syncthreads();
  if (threadIdx.x == 0) {
    double total = 0;
    for (std::int64_t r = 0; r < rows; ++r) total += static_cast<double>(factors[first + r]);
    shared_mean = total / static_cast<double>(rows);
  }
  __syncthreads();
  for (std::int64_t r = threadIdx.x; r < rows; r += kThreads)
    factors[first + r] = static_cast<float>(std::sqrt(shared_mean / static_cast<double>(factors[first + r])));
}

__global__ void __launch_bounds__(kThreads) column_moments(const Moments moments, float* factors, std::int64_t count) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) factors[i] = static_cast<float>(1 / std::sqrt(static_cast<double>(moments(i))));
}

/// An element's update direction, from factors or from its own second moment.
struct Direction {
  AdafactorScalars s;
  FactoredShape shape;
  std::int64_t offset;
  const float* row_factor;  // both nullptr where a second moment is used
  const float* column_factor;

  __device__ float operator()(std::int64_t i, float g, float v) const {
    if (row_factor == nullptr) return (s.gradient_factor * g) / math::sqrt(optim::second_moment(s, g, v));
    const std::int64_t at = offset + i, row = at / shape.columns;
    const float factor = row_factor[row] * column_factor[row / shape.rows * shape.columns + at % shape.columns];
    return (s.gradient_factor * g) * factor;
  }
};

struct DirectionOf {
  Direction direction;
  cuda::AnyGradient gradient;
  const float* square;
  __device__ float operator()(std::int64_t i) const {
    return direction(i, gradient(i), square != nullptr ? square[i] : 0.0f);
  }
};

struct AdafactorUpdate {
  Direction direction;
  bool has_mean;
  __device__ void operator()(std::int64_t i, float g, float (&x)[3]) const {
    const AdafactorScalars& s = direction.s;
    float update = direction(i, g, x[2]) * s.update_factor;
    x[2] = optim::second_moment(s, g, x[2]);
    if (has_mean) {
      x[1] = math::fma(s.beta1, x[1], (1.0f - s.beta1) * update);
      update = x[1];
    }
    x[0] = math::fma(s.keep, x[0], -update);
  }
};

unsigned blocks_for(std::int64_t threads) { return static_cast<unsigned>((threads + kThreads - 1) / kThreads); }

}  // namespace

void run(const Cuda& cuda, const FactoredSquaresArgs& args) {
  const std::int64_t begin = args.offset, end = begin + args.gradient.numel(), columns = args.shape.columns;
  if (begin == end) return;
  const std::int64_t rows = (end + columns - 1) / columns - begin / columns;
  const cuda::AnyGradient gradient(args.gradient);
  row_squares<<<blocks_for(32 * rows), kThreads, 0, stream_of(cuda)>>>(gradient, args.row_sums.as<double>(), args.shape,
                                                                       begin, end, args.gradient_factor);
  column_squares<<<blocks_for(columns), kThreads, 0, stream_of(cuda)>>>(gradient, args.column_sums.as<double>(),
                                                                        args.shape, begin, end, args.gradient_factor);
  check_cuda(cudaGetLastError(), FactoredSquaresArgs::kName, cuda.device);
}

void run(const Cuda& cuda, const FactoredMomentsArgs& args) {
  const FactoredShape& shape = args.shape;
  if (shape.batch == 0) return;
  const Moments row{args.row.as<float>(),
                    args.row_sums.as<double>(),
                    args.new_row.as<float>(),
                    static_cast<double>(shape.columns),
                    args.beta2,
                    args.epsilon};
  const Moments column{args.column.as<float>(),
                       args.column_sums.as<double>(),
                       args.new_column.as<float>(),
                       static_cast<double>(shape.rows),
                       args.beta2,
                       args.epsilon};
  row_moments<<<static_cast<unsigned>(shape.batch), kThreads, 0, stream_of(cuda)>>>(row, args.row_factor.as<float>(),
                                                                                    shape.rows);
  if (shape.column_count() > 0) {
    column_moments<<<blocks_for(shape.column_count()), kThreads, 0, stream_of(cuda)>>>(
        column, args.column_factor.as<float>(), shape.column_count());
  }
  check_cuda(cudaGetLastError(), FactoredMomentsArgs::kName, cuda.device);
}

void run(const Cuda& cuda, const AdafactorSquaresArgs& args) {
  const Direction direction{args.scalars, args.shape, args.offset, args.row_factor.as<float>(),
                            args.column_factor.as<float>()};
  cuda::sum_blocks_of(cuda, AdafactorSquaresArgs::kName,
                      DirectionOf{direction, cuda::AnyGradient(args.gradient), args.exp_avg_sq.as<float>()}, args.sums,
                      args.gradient.numel());
}

void run(const Cuda& cuda, const AdafactorArgs& args) {
  const Direction direction{args.scalars, args.shape, args.offset, args.row_factor.as<float>(),
                            args.column_factor.as<float>()};
  const cuda::States<3> states{{args.parameter.as<float>(), args.exp_avg.as<float>(), args.exp_avg_sq.as<float>()}};
  cuda::step(cuda, AdafactorArgs::kName, AdafactorUpdate{direction, args.exp_avg.defined()}, states, args.gradient,
             args.copy, args.parameter.numel());
}

}  // namespace castor
