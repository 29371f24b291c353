// Adafactor and CAME on ranges: values against plain f64 loops, and the promise that cuts at block boundaries, threads
// and the compiler's vectors change no bit. Rows and columns do not follow blocks, so shapes of every kind are tried.
#include <algorithm>
#include <cmath>

#include <doctest/doctest.h>

#include "core/ops/came.h"
#include "tests/ops/optim_ranges.h"

namespace castor {
namespace {

using namespace castor::test;

AdafactorScalars adafactor_scalars() {
  AdafactorScalars s;
  s.gradient_factor = 0.5f;
  s.beta2 = 0.8f;
  s.beta1 = 0.9f;
  s.keep = 0.99f;
  return s;
}

/// One Adafactor step of a parameter of `shape`; `row` and `column` are its states where it has two axes.
void adafactor_in_ranges(const Whole& whole, const Shape& shape, const Tensor& row, const Tensor& column,
                         bool with_mean, const std::vector<std::int64_t>& cuts) {
  AdafactorScalars scalars = adafactor_scalars();
  FactoredShape factored;
  AdafactorMoments moments;
  if (shape.ndim() >= 2) {
    factored = factored_shape(shape);
    std::vector<double> rows(static_cast<std::size_t>(factored.row_count())),
        columns(static_cast<std::size_t>(factored.column_count()));
    for_ranges(cuts, whole.parameter.numel(), [&](std::int64_t offset, std::int64_t count) {
      adafactor_squares(whole.gradient.narrow(0, offset, count), 0.5, factored, offset, rows, columns);
    });
    moments = adafactor_moments({row, column, {}}, factored, rows, columns, 0.8, 1e-30);
    copy_into(moments.row, row);
    copy_into(moments.column, column);
  }
  const auto moments_of = [&](std::int64_t offset, std::int64_t count) {
    AdafactorMoments part = moments;
    if (!moments.row.defined()) part.exp_avg_sq = whole.second.narrow(0, offset, count);
    return part;
  };
  double squares = 0;
  for_ranges(cuts, whole.parameter.numel(), [&](std::int64_t offset, std::int64_t count) {
    squares = adafactor_update_squares(whole.gradient.narrow(0, offset, count), moments_of(offset, count), factored,
                                       offset, scalars, squares);
  });
  const double rms = std::sqrt(squares / static_cast<double>(whole.parameter.numel()));
  scalars.update_factor = static_cast<float>(0.01 / std::max(1.0, rms));
  for_ranges(cuts, whole.parameter.numel(), [&](std::int64_t offset, std::int64_t count) {
    const Whole part = range_of(whole, offset, count);
    adafactor_step(tensors_of(part), with_mean ? part.first : Tensor{}, moments_of(offset, count), factored, offset,
                   scalars);
  });
}

/// Rows shorter, longer and much longer than a block; a batch of matrices; one axis.
const Shape kShapes[] = {{75, 100}, {6, 1250}, {3, 2500}, {5, 3, 500}, {2500, 3}, {7500}};

CameScalars came_scalars() {
  CameScalars s;
  s.gradient_factor = 0.5f;
  s.beta2 = 0.8f;
  s.beta1 = 0.75f;
  s.keep = 0.99f;
  s.lr = 0.01f;
  s.update_factor = 0.9f;
  return s;
}

/// One CAME step of a parameter of `shape`; the moments are its states where it has two axes.
void came_in_ranges(const Whole& whole, const Shape& shape, const AdafactorMoments& squares,
                    const AdafactorMoments& residuals, const std::vector<std::int64_t>& cuts) {
  const CameScalars scalars = came_scalars();
  const bool is_factored = shape.ndim() >= 2;
  const FactoredShape factored = is_factored ? factored_shape(shape) : FactoredShape{};
  const std::int64_t elements = whole.parameter.numel();
  AdafactorMoments now, residuals_now;
  if (is_factored) {
    const auto count = [](std::int64_t n) { return static_cast<std::size_t>(n); };
    std::vector<double> rows(count(factored.row_count())), columns(count(factored.column_count()));
    std::vector<double> residual_rows = rows, residual_columns = columns;
    for_ranges(cuts, elements, [&](std::int64_t offset, std::int64_t n) {
      adafactor_squares(whole.gradient.narrow(0, offset, n), 0.5, factored, offset, rows, columns);
    });
    now = adafactor_moments(squares, factored, rows, columns, 0.8, 1e-30);
    for_ranges(cuts, elements, [&](std::int64_t offset, std::int64_t n) {
      came_residuals(whole.gradient.narrow(0, offset, n), whole.first.narrow(0, offset, n), now, factored, offset,
                     scalars, residual_rows, residual_columns);
    });
    residuals_now = adafactor_moments(residuals, factored, residual_rows, residual_columns, 0.7, 1e-16);
    copy_into(now.row, squares.row);
    copy_into(now.column, squares.column);
    copy_into(residuals_now.row, residuals.row);
    copy_into(residuals_now.column, residuals.column);
  }
  for_ranges(cuts, elements, [&](std::int64_t offset, std::int64_t n) {
    const Whole part = range_of(whole, offset, n);
    const AdafactorMoments moments = is_factored ? now : AdafactorMoments{{}, {}, part.second};
    came_step(tensors_of(part), part.first, moments, residuals_now, factored, offset, scalars);
  });
}

AdafactorMoments moments_for(const Shape& shape, std::uint64_t seed) {
  if (shape.ndim() < 2) return {};
  const FactoredShape factored = factored_shape(shape);
  return {make_tensor(random_array({factored.row_count()}, seed, 0.1, 1), DType::f32),
          make_tensor(random_array({factored.column_count()}, seed + 1, 0.1, 1), DType::f32),
          {}};
}

/// 1 / sqrt(v) of every element, for factored f64 moments after a step that adds the squares of x.
Array inverse_roots(const Shape& shape, Array row, Array column, const Array& x, double decay, double epsilon) {
  const FactoredShape f = factored_shape(shape);
  for (double& value : row.values) value *= decay;
  for (double& value : column.values) value *= decay;
  const std::int64_t count = f.batch * f.rows * f.columns;
  const auto column_at = [&](std::int64_t i) { return i / (f.rows * f.columns) * f.columns + i % f.columns; };
  for (std::int64_t i = 0; i < count; ++i) {
    const double square = x[i] * x[i] + epsilon;
    row[i / f.columns] += (1 - decay) * square / static_cast<double>(f.columns);
    column[column_at(i)] += (1 - decay) * square / static_cast<double>(f.rows);
  }
  Array result({count});
  for (std::int64_t i = 0; i < count; ++i) {
    double mean = 0;
    for (std::int64_t k = 0; k < f.rows; ++k)
      mean += row[i / (f.rows * f.columns) * f.rows + k] / static_cast<double>(f.rows);
    result[i] = 1 / std::sqrt(row[i / f.columns] / mean * column[column_at(i)]);
  }
  return result;
}

}  // namespace

TEST_CASE("any cut at block boundaries gives the bits of the uncut tensor where rows and columns are summed") {
  for (const Shape& shape : kShapes) {
    for (const bool with_mean : {false, true}) {
      check_cuts_and_threads(cat("adafactor of ", shape), 7500, [=](const Whole& whole, const auto& cuts) {
        Tensor row, column;
        if (shape.ndim() >= 2) {
          const FactoredShape factored = factored_shape(shape);
          row = Tensor::zeros({factored.row_count()}, DType::f32);
          column = Tensor::zeros({factored.column_count()}, DType::f32);
        }
        adafactor_in_ranges(whole, shape, row, column, with_mean, cuts);
      });
    }
    check_cuts_and_threads(cat("came of ", shape), 7500, [=](const Whole& whole, const auto& cuts) {
      came_in_ranges(whole, shape, moments_for(shape, 1), moments_for(shape, 3), cuts);
    });
  }
}

TEST_CASE("a missing gradient is a zero gradient for adafactor and came") {
  const Shape shape{30, 50};
  for (int kind = 0; kind < 3; ++kind) {
    const Whole with = make_whole(1500, DType::f32, DType::bf16, 5);
    fill(with.gradient, 0);
    const Whole without = clone_of(with);
    const AdafactorMoments moments = moments_for(shape, 1), residuals = moments_for(shape, 3);
    std::vector<std::vector<double>> sums;
    for (const Whole* x : {&with, &without}) {
      const Tensor gradient = x == &with ? x->gradient : Tensor{};
      const StepTensors tensors{x->parameter, gradient, x->copy};
      if (kind == 0) adafactor_step(tensors, x->first, {{}, {}, x->second}, {}, 0, adafactor_scalars());
      if (kind == 1) came_step(tensors, x->first, {{}, {}, x->second}, {}, {}, 0, came_scalars());
      if (kind == 2) {
        std::vector<double> rows(30), columns(50);
        came_residuals(gradient, x->first, moments, factored_shape(shape), 0, came_scalars(), rows, columns);
        rows.insert(rows.end(), columns.begin(), columns.end());
        sums.push_back(rows);
        came_step(tensors, x->first, moments, residuals, factored_shape(shape), 0, came_scalars());
      }
    }
    if (kind == 2) CHECK(sums[0] == sums[1]);
    check_same(cat("kind ", kind), without, with);
  }
}

TEST_CASE("adafactor follows an f64 reference for matrices, batches of matrices and vectors") {
  for (const Shape& shape : {Shape{30, 50}, Shape{2, 20, 30}, Shape{1500}, Shape{1, 1500}, Shape{1500, 1}}) {
    for (const bool with_mean : {false, true}) {
      const std::int64_t count = shape.numel();
      const bool is_factored = shape.ndim() >= 2;
      const FactoredShape factored = is_factored ? factored_shape(shape) : FactoredShape{};
      const Whole x = make_whole(count, DType::f32, DType::bf16, 31);
      const Tensor row =
          is_factored ? make_tensor(random_array({factored.row_count()}, 1, 0.1, 1), DType::f32) : Tensor{};
      const Tensor column =
          is_factored ? make_tensor(random_array({factored.column_count()}, 2, 0.1, 1), DType::f32) : Tensor{};
      Array p = to_array(x.parameter), m = to_array(x.first), v = to_array(x.second);
      const Array g = to_array(x.gradient);
      Array u({count});
      if (is_factored) {
        Array r = to_array(row), c = to_array(column);
        for (double& value : r.values) value *= 0.8;
        for (double& value : c.values) value *= 0.8;
        const auto row_at = [&](std::int64_t i) { return i / factored.columns; };
        const auto column_at = [&](std::int64_t i) {
          return i / (factored.rows * factored.columns) * factored.columns + i % factored.columns;
        };
        for (std::int64_t i = 0; i < count; ++i) {
          const double square = 0.25 * g[i] * g[i] + 1e-30;
          r[row_at(i)] += 0.2 * square / static_cast<double>(factored.columns);
          c[column_at(i)] += 0.2 * square / static_cast<double>(factored.rows);
        }
        for (std::int64_t i = 0; i < count; ++i) {
          const std::int64_t batch = i / (factored.rows * factored.columns);
          double mean = 0;
          for (std::int64_t k = 0; k < factored.rows; ++k)
            mean += r[batch * factored.rows + k] / static_cast<double>(factored.rows);
          u[i] = 0.5 * g[i] / std::sqrt(r[row_at(i)] / mean * c[column_at(i)]);
        }
      } else {
        for (std::int64_t i = 0; i < count; ++i) {
          v[i] = 0.8 * v[i] + 0.2 * (0.25 * g[i] * g[i] + 1e-30);
          u[i] = 0.5 * g[i] / std::sqrt(v[i]);
        }
      }
      double squares = 0;
      for (const double value : u.values) squares += value * value;
      const double rms = std::sqrt(squares / static_cast<double>(count));
      for (std::int64_t i = 0; i < count; ++i) {
        double update = 0.01 / std::max(1.0, rms) * u[i];
        if (with_mean) update = m[i] = 0.9 * m[i] + 0.1 * update;
        p[i] = 0.99 * p[i] - update;
      }
      adafactor_in_ranges(x, shape, row, column, with_mean, {kStatisticsBlock});
      check_close(cat("adafactor of ", shape, with_mean ? " with a mean" : ""), x.parameter, p, DType::f32, 6e-6);
      if (!is_factored) check_close("adafactor's second moment", x.second, v, DType::f32, 4e-6);
    }
  }
}

TEST_CASE("came follows an f64 reference for matrices, batches of matrices and vectors") {
  for (const Shape& shape : {Shape{30, 50}, Shape{2, 20, 30}, Shape{1500}, Shape{1, 1500}, Shape{1500, 1}}) {
    const std::int64_t count = shape.numel();
    const bool is_factored = shape.ndim() >= 2;
    const Whole x = make_whole(count, DType::f32, DType::bf16, 31);
    const AdafactorMoments squares = moments_for(shape, 1), residuals = moments_for(shape, 3);
    Array p = to_array(x.parameter), m = to_array(x.first), v = to_array(x.second), g = to_array(x.gradient);
    for (double& value : g.values) value *= 0.5;
    Array roots({count}), off({count});
    if (is_factored) roots = inverse_roots(shape, to_array(squares.row), to_array(squares.column), g, 0.8, 1e-30);
    for (std::int64_t i = 0; i < count; ++i) {
      v[i] = 0.8 * v[i] + 0.2 * (g[i] * g[i] + 1e-30);
      const double update = 0.9 * g[i] * (is_factored ? roots[i] : 1 / std::sqrt(v[i]));
      m[i] = 0.75 * m[i] + 0.25 * update;
      off[i] = update - m[i];
    }
    Array confidence({count});
    std::fill(confidence.values.begin(), confidence.values.end(), 1);
    if (is_factored)
      confidence = inverse_roots(shape, to_array(residuals.row), to_array(residuals.column), off, 0.7, 1e-16);
    for (std::int64_t i = 0; i < count; ++i) p[i] = 0.99 * p[i] - 0.01 * m[i] * confidence[i];
    came_in_ranges(x, shape, squares, residuals, {kStatisticsBlock});
    check_close(cat("came of ", shape), x.parameter, p, DType::f32, 6e-6);
    check_close("came's mean", x.first, m, DType::f32, 6e-6);
    if (!is_factored) check_close("came's second moment", x.second, v, DType::f32, 4e-6);
  }
}

TEST_CASE("factored steps run on meta and on empty ranges") {
  const Device meta = make_meta({DeviceType::cpu, "", 0});
  for (const Device device : {meta, kCpu}) {
    const std::int64_t count = device.is_meta() ? 2000 : 0;
    const auto make = [&](DType dtype) { return Tensor::empty({count}, dtype, device); };
    const StepTensors tensors{make(DType::f32), make(DType::bf16), make(DType::bf16)};
    const Tensor first = make(DType::f32), second = make(DType::f32);
    adafactor_step(tensors, first, {{}, {}, second}, {}, 0, {});
    CHECK(adafactor_update_squares(tensors.gradient, {{}, {}, second}, {}, 0, {}, 4) == 4);
    came_step(tensors, first, {{}, {}, second}, {}, {}, 0, {});
  }
}

TEST_CASE("factored steps refuse tensors that do not fit") {
  const auto f32 = [](std::int64_t count) { return Tensor::zeros({count}, DType::f32); };
  const Tensor p = f32(8), state = f32(8);
  CHECK_THROWS_AS(factored_shape({5}), ShapeError);
  std::vector<double> rows(2), columns(4);
  CHECK_THROWS_AS(adafactor_squares(p, 1, {1, 2, 4}, 512, rows, columns), ShapeError);
  CHECK_THROWS_AS(adafactor_squares(p, 1, {1, 2, 3}, 0, rows, columns), ShapeError);
  CHECK_THROWS_AS(adafactor_squares(p, 1, {1, 2, 4}, 0, columns, columns), ShapeError);
  CHECK_THROWS_AS(adafactor_moments({f32(2), {}, {}}, {1, 2, 4}, rows, columns, 0.9, 0), ShapeError);
  CHECK_THROWS_AS(adafactor_step({p, f32(8), {}}, {}, {{}, {}, {}}, {}, 0, {}), ShapeError);
  CHECK_THROWS_AS(adafactor_step({p, f32(8), {}}, {}, {{}, {}, state}, {}, 100, {}), ShapeError);
  const AdafactorMoments moments{f32(2), f32(4), {}};
  CHECK_THROWS_AS(came_residuals(p, f32(7), moments, {1, 2, 4}, 0, {}, rows, columns), ShapeError);
  CHECK_THROWS_AS(came_residuals(p, state, {}, {1, 2, 4}, 0, {}, rows, columns), ShapeError);
  CHECK_THROWS_AS(came_residuals(p, state, moments, {1, 2, 4}, 0, {}, columns, columns), ShapeError);
  CHECK_THROWS_AS(came_step({p, f32(8), {}}, {}, moments, moments, {1, 2, 4}, 0, {}), ShapeError);
  CHECK_THROWS_AS(came_step({p, f32(8), {}}, state, moments, {}, {1, 2, 4}, 0, {}), ShapeError);
  CHECK_THROWS_AS(came_step({p, f32(8), {}}, state, {{}, {}, {}}, {}, {}, 0, {}), ShapeError);
}

}  // namespace castor
