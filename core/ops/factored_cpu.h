// How kernels on the CPU walk a parameter by rows and columns. Delicate: those do not follow blocks. A row's sum is
// taken by pieces, each a row within a block of the logical tensor, in f32 chains and then f64; a column's in f64, row
// by row. Neither depends on where a range was cut.
#pragma once

#include "core/ops/optim_element.h"
#include "core/ops/optim_stretch.h"

namespace castor::optim_cpu {

/// Calls body(row, column, at, width) for each piece of a row within elements [begin, begin + count) of a parameter;
/// the piece starts `at` elements into them.
template <class Body>
void for_each_piece(const FactoredShape& shape, std::int64_t begin, std::int64_t count, Body body) {
  std::int64_t row = begin / shape.columns, column = begin % shape.columns;
  for (std::int64_t at = 0; at < count;) {
    const std::int64_t width = std::min(shape.columns - column, count - at);
    body(row, column, at, width);
    at += width;
    column = 0;
    ++row;
  }
}

/// u = gradient row_factor column_factor for one block.
inline void factored_update(const FactoredShape& shape, std::int64_t offset, std::int64_t count, float gradient_factor,
                            const float* g, const float* row_factor, const float* column_factor, float* u) {
  for_each_piece(shape, offset, count, [&](std::int64_t row, std::int64_t column, std::int64_t at, std::int64_t width) {
    const float factor = row_factor[row];
    const float* columns = column_factor + row / shape.rows * shape.columns + column;
#pragma GCC ivdep
    for (std::int64_t i = 0; i < width; ++i) u[at + i] = (gradient_factor * g[at + i]) * (factor * columns[i]);
  });
}

/// One block's update direction into u, from factors or from the block's own second moment.
inline void update_direction(const FactoredShape& shape, std::int64_t offset, std::int64_t count,
                             const AdafactorScalars& s, const float* g, const float* row_factor,
                             const float* column_factor, const float* v, float* u) {
  if (row_factor != nullptr) {
    return factored_update(shape, offset, count, s.gradient_factor, g, row_factor, column_factor, u);
  }
#pragma GCC ivdep
  for (std::int64_t i = 0; i < count; ++i)
    u[i] = (s.gradient_factor * g[i]) / math::sqrt(optim::second_moment(s, g[i], v[i]));
}

/// row_sums[row] += over columns, column_sums[column] += over rows of value(at, row, column)^2 for elements [begin,
/// begin + count) of a parameter; `column` counts within all columns of all matrices.
template <class Value>
void add_factored_squares(const FactoredShape& shape, std::int64_t begin, std::int64_t count, const View& row_sums,
                          const View& column_sums, Value value) {
  const std::int64_t columns = shape.columns, end = begin + count;
  const std::int64_t first_row = begin / columns, last_row = (end + columns - 1) / columns;
  parallel_for(last_row - first_row, std::max<std::int64_t>(1, 16384 / columns),
               [&](std::int64_t from, std::int64_t to) {
                 for (std::int64_t row = first_row + from; row < first_row + to; ++row) {
                   const std::int64_t row_begin = row * columns, row_end = std::min(end, row_begin + columns);
                   const std::int64_t first_column = row / shape.rows * columns;
                   std::int64_t at = std::max(begin, row_begin);
                   double& sum = row_sums.as<double>()[row];
                   while (at < row_end) {
                     const std::int64_t piece_end = std::min(row_end, (at / kStatisticsBlock + 1) * kStatisticsBlock);
                     const std::int64_t column = first_column + at - row_begin;
                     sum += static_cast<double>(fold_lanes<float>(
                         piece_end - at, 0.0f,
                         [&](float total, std::int64_t i) {
                           const float x = value(at + i, row, column + i);
                           return math::fma(x, x, total);
                         },
                         [](float a, float b) { return a + b; }));
                     at = piece_end;
                   }
                 }
               });
  const std::int64_t rows = std::max<std::int64_t>(1, last_row - first_row);
  parallel_for(columns, std::max<std::int64_t>(64, 16384 / rows), [&](std::int64_t from, std::int64_t to) {
    for (std::int64_t row = first_row; row < last_row; ++row) {
      const std::int64_t first_column = row / shape.rows * columns, row_begin = row * columns;
      double* sums = column_sums.as<double>() + first_column;
      const std::int64_t low = std::max(from, begin - row_begin), high = std::min(to, end - row_begin);
#pragma GCC ivdep
      for (std::int64_t c = low; c < high; ++c) {
        const double x = static_cast<double>(value(row_begin + c, row, first_column + c));
        sums[c] = math::fma(x, x, sums[c]);
      }
    }
  });
}

}  // namespace castor::optim_cpu
