// Pooling against direct f64 loops: every geometry and layout, ties and NaN, positions of maxima, gradients.
#include "core/ops/pool.h"

#include <cmath>
#include <limits>

#include <doctest/doctest.h>

#include "autograd/ops/pool.h"
#include "core/base/parallel.h"
#include "core/ops/channels_last.h"
#include "tests/support/op_check.h"

namespace castor {
namespace {

using namespace castor::test;

struct PoolRow {
  Shape x;
  PoolGeometry geometry;
};

PoolGeometry square(std::int64_t kernel, std::int64_t stride, std::int64_t padding = 0) {
  return {{kernel, kernel}, {stride, stride}, {padding, padding}};
}

PoolGeometry with(PoolGeometry geometry, bool ceil_mode, bool count_include_pad) {
  geometry.ceil_mode = ceil_mode;
  geometry.count_include_pad = count_include_pad;
  return geometry;
}

const std::vector<PoolRow>& rows() {
  static const std::vector<PoolRow> table = {
      {{2, 3, 6, 8}, square(2, 2)},
      {{2, 41, 7, 5}, square(2, 2)},
      {{3, 9, 5, 7}, with(square(3, 3), true, true)},
      {{1, 70, 5, 5}, square(3, 2, 1)},
      {{2, 4, 7, 7}, square(3, 1)},
      {{2, 4, 7, 6}, with(square(3, 2, 1), true, false)},
      {{1, 2, 5, 5}, with(square(2, 2), true, true)},
      {{1, 2, 6, 7}, with(square(3, 3, 1), true, true)},
      {{1, 2, 9, 4}, {{1, 3}, {2, 1}, {0, 1}}},
      {{1, 2, 4, 4}, with(square(4, 4, 2), false, false)},
      {{3, 1, 1, 1}, square(1, 1)},
      {{0, 3, 4, 4}, square(2, 2)},
      {{2, 0, 4, 4}, square(2, 2)},
  };
  return table;
}

std::int64_t result_size(std::int64_t size, const PoolGeometry& g, int axis) {
  const double room = static_cast<double>(size + 2 * g.padding[axis] - g.dilation[axis] * (g.kernel[axis] - 1) - 1) /
                      static_cast<double>(g.stride[axis]);
  auto result = static_cast<std::int64_t>(g.ceil_mode ? std::ceil(room) : std::floor(room)) + 1;
  if (g.ceil_mode && (result - 1) * g.stride[axis] >= size + g.padding[axis]) --result;
  return result;
}

/// The maximum with its position, or the average, over explicit windows; f(values, positions, padded count).
template <class F>
Array over_windows(const Array& x, const PoolGeometry& g, F f) {
  Array y({x.shape[0], x.shape[1], result_size(x.shape[2], g, 0), result_size(x.shape[3], g, 1)});
  for (std::int64_t i = 0; i < y.numel(); ++i) {
    const Shape at = y.index_of(i);
    std::vector<double> values;
    std::vector<std::int64_t> positions;
    std::int64_t padded = 0;
    for (std::int64_t kh = 0; kh < g.kernel[0]; ++kh) {
      for (std::int64_t kw = 0; kw < g.kernel[1]; ++kw) {
        const std::int64_t h = at[2] * g.stride[0] - g.padding[0] + kh * g.dilation[0],
                           w = at[3] * g.stride[1] - g.padding[1] + kw * g.dilation[1];
        if (h < x.shape[2] + g.padding[0] && w < x.shape[3] + g.padding[1]) ++padded;
        if (h < 0 || w < 0 || h >= x.shape[2] || w >= x.shape[3]) continue;
        values.push_back(x.at({at[0], at[1], h, w}));
        positions.push_back(h * x.shape[3] + w);
      }
    }
    y[i] = f(values, positions, padded);
  }
  return y;
}

std::size_t first_maximum(const std::vector<double>& values) {
  std::size_t best = 0;
  for (std::size_t i = 1; i < values.size(); ++i) {
    if (values[i] > values[best]) best = i;
  }
  return best;
}

Array max_reference(const Array& x, const PoolGeometry& g) {
  return over_windows(x, g, [](const auto& values, const auto&, std::int64_t) {
    return values.empty() ? -std::numeric_limits<double>::infinity() : values[first_maximum(values)];
  });
}

Array index_reference(const Array& x, const PoolGeometry& g) {
  Array result = over_windows(x, g, [](const auto& values, const auto& positions, std::int64_t) {
    return values.empty() ? -1.0 : static_cast<double>(positions[first_maximum(values)]);
  });
  result.dtype = DType::i32;
  return result;
}

Array average_reference(const Array& x, const PoolGeometry& g) {
  return over_windows(x, g, [&](const auto& values, const auto&, std::int64_t padded) {
    double sum = 0;
    for (const double value : values) sum += value;
    return sum / static_cast<double>(g.count_include_pad ? padded : static_cast<std::int64_t>(values.size()));
  });
}

Array adaptive_reference(const Array& x, const Shape& size, bool is_max) {
  Array y({x.shape[0], x.shape[1], size[0], size[1]});
  for (std::int64_t i = 0; i < y.numel(); ++i) {
    const Shape at = y.index_of(i);
    double sum = 0, best = -std::numeric_limits<double>::infinity();
    std::int64_t count = 0;
    for (std::int64_t h = at[2] * x.shape[2] / size[0]; h < ((at[2] + 1) * x.shape[2] + size[0] - 1) / size[0]; ++h) {
      for (std::int64_t w = at[3] * x.shape[3] / size[1]; w < ((at[3] + 1) * x.shape[3] + size[1] - 1) / size[1]; ++w) {
        sum += x.at({at[0], at[1], h, w});
        best = std::max(best, x.at({at[0], at[1], h, w}));
        ++count;
      }
    }
    y[i] = is_max ? best : sum / static_cast<double>(count);
  }
  return y;
}

const std::vector<std::pair<Shape, Shape>> kAdaptive = {{{2, 3, 6, 6}, {2, 3}},  {{1, 5, 7, 5}, {3, 4}},
                                                        {{2, 66, 4, 4}, {1, 1}}, {{1, 2, 2, 3}, {5, 4}},
                                                        {{1, 1, 1, 1}, {1, 1}},  {{0, 2, 3, 3}, {2, 2}}};
const std::vector<DType> kAllFloats = {DType::f32, DType::bf16, DType::f16, DType::f64};

/// Distinct values, so that no step of a numeric gradient changes which one is largest.
Operand distinct(const Shape& shape) {
  Operand operand{shape};
  for (std::int64_t i = 0; i < shape.numel(); ++i) {
    operand.values.push_back(static_cast<double>(i * 37 % std::max<std::int64_t>(shape.numel(), 1)) / 16 - 2);
  }
  return operand;
}

}  // namespace

TEST_CASE("max_pool2d gives maxima and their positions for every geometry, dtype and layout") {
  std::vector<PoolRow> table = rows();
  table.push_back({{1, 3, 9, 9}, {{2, 3}, {2, 1}, {1, 1}, {2, 3}}});
  table.push_back({{1, 1, 4, 4}, {{2, 2}, {1, 1}, {1, 1}, {5, 5}}});
  for (const PoolRow& row : table) {
    OpCheck check;
    check.op = "max_pool2d";
    check.dtypes = kAllFloats;
    check.any_threads = true;
    check.run = [&](const Tensors& in) {
      Tensor indices;
      const Tensor y = max_pool2d(in[0], row.geometry, &indices);
      return Tensors{y, indices};
    };
    check.reference = [&](const Arrays& in) {
      return Arrays{max_reference(in[0], row.geometry), index_reference(in[0], row.geometry)};
    };
    check_op(check, unary_cases({row.x}, -2, 2));
  }
}

TEST_CASE("avg_pool2d gives means with and without padding in the divisor") {
  for (const PoolRow& row : rows()) {
    OpCheck check;
    check.op = "avg_pool2d";
    check.dtypes = kAllFloats;
    check.any_threads = true;
    check.run = [&](const Tensors& in) { return Tensors{avg_pool2d(in[0], row.geometry)}; };
    check.reference = [&](const Arrays& in) { return Arrays{average_reference(in[0], row.geometry)}; };
    check_op(check, unary_cases({row.x}, 0.5, 2));
  }
}

TEST_CASE("adaptive pooling covers the image with windows of the sizes that fit") {
  for (const auto& [shape, size] : kAdaptive) {
    for (const bool is_max : {true, false}) {
      OpCheck check;
      check.op = cat("adaptive ", is_max ? "max" : "average", " to ", size);
      check.dtypes = kAllFloats;
      check.any_threads = true;
      check.run = [&](const Tensors& in) {
        return Tensors{is_max ? adaptive_max_pool2d(in[0], size) : adaptive_avg_pool2d(in[0], size)};
      };
      check.reference = [&](const Arrays& in) { return Arrays{adaptive_reference(in[0], size, is_max)}; };
      check_op(check, unary_cases({shape}, 0.5, 2));
    }
  }
}

TEST_CASE("the gradients of every kind of pooling match central differences") {
  using Variables = std::vector<autograd::Variable>;
  std::vector<PoolRow> table = rows();
  table.push_back({{1, 3, 9, 9}, {{2, 3}, {2, 1}, {1, 1}, {2, 3}}});
  for (const PoolRow& row : table) {
    check_gradient(
        variable_check("max_pool2d",
                       [&](const Variables& in) { return Variables{autograd::max_pool2d(in[0], row.geometry)}; }),
        {{"distinct", {distinct(row.x)}}});
    if (row.geometry.dilation[0] != 1) continue;
    check_gradient(
        variable_check("avg_pool2d",
                       [&](const Variables& in) { return Variables{autograd::avg_pool2d(in[0], row.geometry)}; }),
        unary_cases({row.x}));
  }
  for (const auto& [shape, size] : kAdaptive) {
    check_gradient(
        variable_check("adaptive_max_pool2d",
                       [&](const Variables& in) { return Variables{autograd::adaptive_max_pool2d(in[0], size)}; }),
        {{"distinct", {distinct(shape)}}});
    check_gradient(
        variable_check("adaptive_avg_pool2d",
                       [&](const Variables& in) { return Variables{autograd::adaptive_avg_pool2d(in[0], size)}; }),
        unary_cases({shape}));
  }
}

TEST_CASE("a maximum takes the first of equals, passes NaN on, and a window of minus infinities has a position") {
  const double inf = HUGE_VAL, nan = std::nan("");
  const Tensor x =
      make_tensor(Array({1, 1, 2, 8}, {1, 1, nan, 3, -inf, -inf, 5, nan, 1, 1, 2, 9, -inf, -inf, nan, 7}), DType::f32);
  Tensor indices;
  const Array y = to_array(max_pool2d(x, square(2, 2), &indices)), at = to_array(indices);
  CHECK(y[0] == 1);
  CHECK(at[0] == 0);
  CHECK(std::isnan(y[1]));
  CHECK(at[1] == 2);
  CHECK(y[2] == -inf);
  CHECK(at[2] == 4);
  CHECK(std::isnan(y[3]));
  CHECK(at[3] == 14);
}

TEST_CASE("pooling names what does not fit") {
  const Tensor x = Tensor::zeros({1, 2, 4, 4}, DType::f32);
  CHECK_THROWS_WITH_AS(max_pool2d(Tensor::zeros({4, 4}, DType::f32), {}),
                       "max_pool2d: expected x [n, c, h, w], got f32[4,4]", ShapeError);
  CHECK_THROWS_AS(max_pool2d(Tensor::zeros({1, 1, 4, 4}, DType::i64), {}), DTypeError);
  CHECK_THROWS_AS(max_pool2d(x, square(2, 0)), ShapeError);
  CHECK_THROWS_AS(max_pool2d(x, square(2, 1, 2)), ShapeError);
  CHECK_THROWS_WITH_AS(avg_pool2d(x, square(5, 1)),
                       "avg_pool2d: windows reach over 5 pixels, the padded image of shape [1,2,4,4] has 4; use "
                       "smaller windows or more padding",
                       ShapeError);
  CHECK_THROWS_AS(avg_pool2d(x, {{2, 2}, {2, 2}, {0, 0}, {2, 2}}), ShapeError);
  CHECK_THROWS_AS(adaptive_avg_pool2d(x, {0, 1}), ShapeError);
  CHECK_THROWS_AS(adaptive_avg_pool2d(x, {2}), ShapeError);
  CHECK_THROWS_AS(adaptive_avg_pool2d(Tensor::zeros({1, 2, 0, 4}, DType::f32), {1, 1}), ShapeError);
  CHECK_THROWS_AS(avg_pool2d_backward(Tensor::zeros({1, 2, 3, 3}, DType::f32), {1, 2, 4, 4}, {}), ShapeError);
  CHECK_THROWS_AS(max_pool2d_backward(Tensor::zeros({1, 2, 2, 2}, DType::f32), Tensor::zeros({1, 2, 2, 2}, DType::i64),
                                      {1, 2, 4, 4}, {}),
                  DTypeError);
}

}  // namespace castor
