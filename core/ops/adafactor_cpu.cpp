// Kernels of Adafactor on the CPU. Delicate: rows and columns do not follow blocks. A row's sum is taken by pieces,
// each a row within a block of the logical tensor, in f32 chains and then f64; a column's in f64, row by row. Neither
// depends on where a range was cut.
#include <cmath>

#include "core/ops/optim_element.h"
#include "core/ops/optim_stretch.h"

namespace castor {
namespace {

using namespace optim_cpu;

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
void factored_update(const FactoredShape& shape, std::int64_t offset, std::int64_t count, float gradient_factor,
                     const float* g, const float* row_factor, const float* column_factor, float* u) {
  for_each_piece(shape, offset, count, [&](std::int64_t row, std::int64_t column, std::int64_t at, std::int64_t width) {
    const float factor = row_factor[row];
    const float* columns = column_factor + row / shape.rows * shape.columns + column;
#pragma GCC ivdep
    for (std::int64_t i = 0; i < width; ++i) u[at + i] = (gradient_factor * g[at + i]) * (factor * columns[i]);
  });
}

/// One block's update direction into u, from factors or from the block's own second moment.
void update_direction(const FactoredShape& shape, std::int64_t offset, std::int64_t count, const AdafactorScalars& s,
                      const float* g, const float* row_factor, const float* column_factor, const float* v, float* u) {
  if (row_factor != nullptr) {
    return factored_update(shape, offset, count, s.gradient_factor, g, row_factor, column_factor, u);
  }
#pragma GCC ivdep
  for (std::int64_t i = 0; i < count; ++i)
    u[i] = (s.gradient_factor * g[i]) / math::sqrt(optim::second_moment(s, g[i], v[i]));
}

struct AdafactorUpdate {
  AdafactorScalars s;
  FactoredShape shape;
  std::int64_t offset;
  const float* row_factor;  // both nullptr where `square` is used
  const float* column_factor;
  float* p;
  float* mean;    // or nullptr
  float* square;  // or nullptr

  [[gnu::always_inline]] void fetch(std::int64_t begin) const {
    fetch_ahead(mean, begin);
    fetch_ahead(square, begin);
  }
  void operator()(const float* g, std::int64_t begin, std::int64_t count, float*) const {
    float update[kStretch];
    update_direction(shape, offset + begin, count, s, g, row_factor, column_factor,
                     square == nullptr ? nullptr : square + begin, update);
    if (square != nullptr) {
#pragma GCC ivdep
      for (std::int64_t i = 0; i < count; ++i) square[begin + i] = optim::second_moment(s, g[i], square[begin + i]);
    }
    for (std::int64_t i = 0; i < count; ++i) update[i] *= s.update_factor;
    if (mean != nullptr) {
      const float rest = 1.0f - s.beta1;
#pragma GCC ivdep
      for (std::int64_t i = 0; i < count; ++i) {
        mean[begin + i] = math::fma(s.beta1, mean[begin + i], rest * update[i]);
        update[i] = mean[begin + i];
      }
    }
#pragma GCC ivdep
    for (std::int64_t i = 0; i < count; ++i) p[begin + i] = math::fma(s.keep, p[begin + i], -update[i]);
  }
};

template <class T>
void factored_squares(const FactoredSquaresArgs& args) {
  const std::int64_t columns = args.shape.columns, begin = args.offset, end = args.offset + args.gradient.numel();
  const T* gradient = args.gradient.as<T>() - begin;  // addressed by the element's place in the parameter
  const float factor = args.gradient_factor;
  const std::int64_t first_row = begin / columns, last_row = (end + columns - 1) / columns;
  parallel_for(last_row - first_row, std::max<std::int64_t>(1, 16384 / columns),
               [&](std::int64_t from, std::int64_t to) {
                 for (std::int64_t row = first_row + from; row < first_row + to; ++row) {
                   std::int64_t at = std::max(begin, row * columns);
                   const std::int64_t row_end = std::min(end, (row + 1) * columns);
                   double& sum = args.row_sums.as<double>()[row];
                   while (at < row_end) {
                     const std::int64_t piece_end = std::min(row_end, (at / kStatisticsBlock + 1) * kStatisticsBlock);
                     const T* piece = gradient + at;
                     sum += static_cast<double>(fold_lanes<float>(
                         piece_end - at, 0.0f,
                         [&](float total, std::int64_t i) {
                           const float g = factor * load(piece[i]);
                           return math::fma(g, g, total);
                         },
                         [](float a, float b) { return a + b; }));
                     at = piece_end;
                   }
                 }
               });
  const std::int64_t rows = std::max<std::int64_t>(1, last_row - first_row);
  parallel_for(columns, std::max<std::int64_t>(64, 16384 / rows), [&](std::int64_t from, std::int64_t to) {
    for (std::int64_t row = first_row; row < last_row; ++row) {
      double* sums = args.column_sums.as<double>() + row / args.shape.rows * columns;
      const std::int64_t low = std::max(from, begin - row * columns), high = std::min(to, end - row * columns);
      const T* line = gradient + row * columns;
#pragma GCC ivdep
      for (std::int64_t c = low; c < high; ++c) {
        const double g = static_cast<double>(factor * load(line[c]));
        sums[c] = math::fma(g, g, sums[c]);
      }
    }
  });
}

/// new = beta2 old + (1 - beta2) (sum / length + epsilon), or old where there are no sums.
void update_moments(const View& old, const View& sums, const View& fresh, std::int64_t count, double length,
                    double beta2, double epsilon) {
  if (!fresh.defined()) return;
  for (std::int64_t i = 0; i < count; ++i) {
    const double before = static_cast<double>(old.as<float>()[i]);
    fresh.as<float>()[i] = static_cast<float>(
        sums.defined() ? beta2 * before + (1 - beta2) * (sums.as<double>()[i] / length + epsilon) : before);
  }
}

}  // namespace

void run(const Cpu&, const FactoredSquaresArgs& args) {
  visit_training_float(args.gradient.dtype, FactoredSquaresArgs::kName,
                       [&](auto tag) { factored_squares<typename decltype(tag)::type>(args); });
}

void run(const Cpu&, const FactoredMomentsArgs& args) {
  const FactoredShape& shape = args.shape;
  update_moments(args.row, args.row_sums, args.new_row, shape.row_count(), static_cast<double>(shape.columns),
                 args.beta2, args.epsilon);
  update_moments(args.column, args.column_sums, args.new_column, shape.column_count(), static_cast<double>(shape.rows),
                 args.beta2, args.epsilon);
  const float* row = (args.new_row.defined() ? args.new_row : args.row).as<float>();
  const float* column = (args.new_column.defined() ? args.new_column : args.column).as<float>();
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    double total = 0;
    for (std::int64_t r = b * shape.rows; r < (b + 1) * shape.rows; ++r) total += static_cast<double>(row[r]);
    const double mean = total / static_cast<double>(shape.rows);
    for (std::int64_t r = b * shape.rows; r < (b + 1) * shape.rows; ++r) {
      args.row_factor.as<float>()[r] = static_cast<float>(std::sqrt(mean / static_cast<double>(row[r])));
    }
  }
  for (std::int64_t c = 0; c < shape.column_count(); ++c) {
    args.column_factor.as<float>()[c] = static_cast<float>(1 / std::sqrt(static_cast<double>(column[c])));
  }
}

void run(const Cpu&, const AdafactorSquaresArgs& args) {
  for_each_block(args.gradient.numel(), [&](std::int64_t begin, std::int64_t count, float* scratch) {
    alignas(64) float update[kStatisticsBlock];
    const float* g = gradient_block(args.gradient, begin, count, scratch);
    update_direction(args.shape, args.offset + begin, count, args.scalars, g, args.row_factor.as<float>(),
                     args.column_factor.as<float>(), block_of(args.exp_avg_sq, begin), update);
    args.sums.as<double>()[begin / kStatisticsBlock] = squares_of(update, count);
  });
}

void run(const Cpu&, const AdafactorArgs& args) {
  const AdafactorUpdate update{args.scalars,
                               args.shape,
                               args.offset,
                               args.row_factor.as<float>(),
                               args.column_factor.as<float>(),
                               args.parameter.as<float>(),
                               args.exp_avg.as<float>(),
                               args.exp_avg_sq.as<float>()};
  update_all(update, args.gradient, args.copy, args.parameter.numel());
}

}  // namespace castor
