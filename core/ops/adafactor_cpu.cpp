// Kernels of Adafactor on the CPU; how rows and columns are walked is factored_cpu.h's.
#include <cmath>

#include "core/ops/factored_cpu.h"
#include "core/ops/optim_element.h"

namespace castor {
namespace {

using namespace optim_cpu;

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
  const T* gradient = args.gradient.as<T>() - args.offset;  // addressed by the element's place in the parameter
  add_factored_squares(args.shape, args.offset, args.gradient.numel(), args.row_sums, args.column_sums,
                       [gradient, factor = args.gradient_factor](std::int64_t at, std::int64_t, std::int64_t) {
                         return factor * load(gradient[at]);
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
