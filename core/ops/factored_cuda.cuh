// How kernels on CUDA walk a parameter by rows and columns. Delicate: those do not follow blocks. A row's sum is taken
// by a warp, by pieces within blocks of the logical tensor, in f32 chains and then f64; a column's by a thread, in f64,
// row by row: the CPU's order.
#pragma once

#include "core/ops/optim_cuda.cuh"

namespace castor::cuda {

inline unsigned blocks_for(std::int64_t threads) {
  return static_cast<unsigned>((threads + kStepThreads - 1) / kStepThreads);
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

/// value(i, row, column)^2 added up for elements [begin, end) of a parameter; i counts from begin, `column` within all
/// columns of all matrices.
template <class Value>
__global__ void __launch_bounds__(kStepThreads)
    row_squares(const Value value, double* sums, FactoredShape shape, std::int64_t begin, std::int64_t end) {
  const std::int64_t row =
      begin / shape.columns + (static_cast<std::int64_t>(blockIdx.x) * kStepThreads + threadIdx.x) / 32;
  const std::int64_t row_begin = row * shape.columns;
  std::int64_t at = row_begin, row_end = at + shape.columns;
  if (at >= end) return;
  if (at < begin) at = begin;
  if (row_end > end) row_end = end;
  const std::int64_t first_column = row / shape.rows * shape.columns;
  double sum = sums[row];
  while (at < row_end) {
    const std::int64_t block_end = (at / kStatisticsBlock + 1) * kStatisticsBlock;
    const std::int64_t piece_end = block_end < row_end ? block_end : row_end;
    sum += static_cast<double>(sum_squares_of(
        at, piece_end, [&](std::int64_t i) { return value(i - begin, row, first_column + i - row_begin); }));
    at = piece_end;
  }
  if (threadIdx.x % 32 == 0) sums[row] = sum;
}

template <class Value>
__global__ void __launch_bounds__(kStepThreads)
    column_squares(const Value value, double* sums, FactoredShape shape, std::int64_t begin, std::int64_t end) {
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * kStepThreads + threadIdx.x;
  if (column >= shape.columns) return;
  const std::int64_t last_row = (end + shape.columns - 1) / shape.columns;
  for (std::int64_t row = begin / shape.columns; row < last_row; ++row) {
    const std::int64_t at = row * shape.columns + column;
    if (at < begin || at >= end) continue;
    const std::int64_t place = row / shape.rows * shape.columns + column;
    const double x = static_cast<double>(value(at - begin, row, place));
    sums[place] = math::fma(x, x, sums[place]);
  }
}

/// Launches both for elements [begin, begin + count).
template <class Value>
void add_factored_squares(const Cuda& cuda, const char* op, const FactoredShape& shape, std::int64_t begin,
                          std::int64_t count, const View& row_sums, const View& column_sums, const Value& value) {
  if (count == 0) return;
  const std::int64_t end = begin + count, rows = (end + shape.columns - 1) / shape.columns - begin / shape.columns;
  row_squares<<<blocks_for(32 * rows), kStepThreads, 0, stream_of(cuda)>>>(value, row_sums.as<double>(), shape, begin,
                                                                           end);
  column_squares<<<blocks_for(shape.columns), kStepThreads, 0, stream_of(cuda)>>>(value, column_sums.as<double>(),
                                                                                  shape, begin, end);
  check_cuda(cudaGetLastError(), op, cuda.device);
}

}  // namespace castor::cuda
