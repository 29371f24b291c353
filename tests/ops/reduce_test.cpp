// Reductions over any axes against f64, their gradients, and what they promise about bits.
#include "core/ops/reduce.h"

#include <algorithm>
#include <cmath>

#include <doctest/doctest.h>

#include "autograd/graph.h"
#include "autograd/ops/reduce.h"
#include "core/ops/elementwise.h"
#include "tests/support/op_check.h"

namespace castor {
namespace {

using namespace castor::test;

const std::vector<DType> kAllFloats = {DType::f32, DType::bf16, DType::f16, DType::f64};

/// The elements of x that meet in each element of the keepdim result.
std::vector<std::vector<double>> groups(const Array& x, unsigned mask, Shape& with_ones) {
  with_ones = x.shape;
  for (int i = 0; i < x.shape.ndim(); ++i) {
    if ((mask >> i & 1u) != 0) with_ones[i] = 1;
  }
  const Array result(with_ones);
  std::vector<std::vector<double>> members(static_cast<std::size_t>(with_ones.numel()));
  for (std::int64_t i = 0; i < x.numel(); ++i) {
    Shape index = x.index_of(i);
    for (int axis = 0; axis < index.ndim(); ++axis) {
      if ((mask >> axis & 1u) != 0) index[axis] = 0;
    }
    members[static_cast<std::size_t>(result.flat(index))].push_back(x[i]);
  }
  return members;
}

double reduce_values(ReduceOp op, const std::vector<double>& x, double correction) {
  double sum = 0, absolute = 0, squares = 0, max = -HUGE_VAL, min = HUGE_VAL, largest = 0;
  for (const double value : x) {
    sum += value;
    absolute += std::abs(value);
    squares += value * value;
    max = std::max(max, value);
    min = std::min(min, value);
    largest = std::max(largest, std::abs(value));
  }
  const double count = static_cast<double>(x.size());
  switch (op) {
    case ReduceOp::sum:
      return sum;
    case ReduceOp::mean:
      return sum / count;
    case ReduceOp::max:
      return max;
    case ReduceOp::min:
      return min;
    case ReduceOp::norm1:
      return absolute;
    case ReduceOp::norm2:
      return std::sqrt(squares);
    case ReduceOp::norm_inf:
      return largest;
    case ReduceOp::logsumexp: {
      double total = 0;
      for (const double value : x) total += std::exp(value - max);
      return x.empty() ? -HUGE_VAL : max + std::log(total);
    }
    case ReduceOp::variance: {
      double total = 0;
      for (const double value : x) total += (value - sum / count) * (value - sum / count);
      return total / std::max(count - correction, 0.0);
    }
  }
  return 0;
}

Array reduce_reference(ReduceOp op, const Array& x, const Shape& axes, bool keepdim, double correction = 0) {
  const unsigned mask = axis_mask(axes, x.shape.ndim(), "reference");
  Shape with_ones, without;
  const auto members = groups(x, mask, with_ones);
  for (int i = 0; i < x.shape.ndim(); ++i) {
    if ((mask >> i & 1u) == 0) without.push_back(x.shape[i]);
  }
  Array y(keepdim ? with_ones : without);
  for (std::int64_t i = 0; i < y.numel(); ++i)
    y[i] = reduce_values(op, members[static_cast<std::size_t>(i)], correction);
  return y;
}

struct Row {
  const char* name;
  ReduceOp op;
  double correction = 0;
};
const std::vector<Row> kRows = {{"sum", ReduceOp::sum},
                                {"mean", ReduceOp::mean},
                                {"max", ReduceOp::max},
                                {"min", ReduceOp::min},
                                {"norm1", ReduceOp::norm1},
                                {"norm2", ReduceOp::norm2},
                                {"norm_inf", ReduceOp::norm_inf},
                                {"logsumexp", ReduceOp::logsumexp},
                                {"variance", ReduceOp::variance, 1},
                                {"variance of the population", ReduceOp::variance, 0}};

Tensor call(const Row& row, const Tensor& x, const Shape& axes, bool keepdim) {
  return row.op == ReduceOp::variance ? variance(x, axes, row.correction, keepdim) : reduce(row.op, x, axes, keepdim);
}

bool needs_elements(ReduceOp op) { return op == ReduceOp::max || op == ReduceOp::min; }

struct AxesCase {
  Shape shape;
  Shape axes;
};
const std::vector<AxesCase> kAxesCases = {{{}, {}},
                                          {{1}, {0}},
                                          {{7}, {}},
                                          {{5, 33}, {1}},
                                          {{5, 33}, {0}},
                                          {{5, 33}, {0, 1}},
                                          {{4, 1, 6}, {1}},
                                          {{3, 4, 5}, {0, 2}},
                                          {{3, 4, 5}, {-2}},
                                          {{2, 3, 4, 5}, {2}},
                                          {{2, 3, 4, 5}, {0, 2, 3}},
                                          {{2, 3, 4, 5}, {1, -1}},
                                          {{0, 3}, {1}},
                                          {{3, 0}, {1}},
                                          {{2, 0, 3}, {1, 2}}};

}  // namespace

TEST_CASE("every reduction matches its f64 reference over any axes") {
  for (const Row& row : kRows) {
    for (const AxesCase& axes_case : kAxesCases) {
      if (needs_elements(row.op) && axes_case.shape.numel() == 0 && axes_case.shape[0] != 0) continue;
      for (const bool keepdim : {false, true}) {
        OpCheck check;
        check.op = cat(row.name, " over ", axes_case.axes);
        check.dtypes = kAllFloats;
        check.slack = 2;
        check.run = [&](const Tensors& in) { return Tensors{call(row, in[0], axes_case.axes, keepdim)}; };
        check.reference = [&](const Arrays& in) {
          return Arrays{reduce_reference(row.op, in[0], axes_case.axes, keepdim, row.correction)};
        };
        check_op(check, {{"values", {{axes_case.shape, -2, 3}}}});
      }
    }
  }
}

TEST_CASE("long reductions keep their accuracy and their bits for any number of threads") {
  const std::vector<AxesCase> cases = {
      {{40000}, {0}},    {{3, 20000}, {1}},   {{20000, 3}, {0}},           {{700, 600}, {0}},
      {{20, 5000}, {1}}, {{4, 300, 40}, {1}}, {{9, 16, 30, 11}, {0, 2, 3}}};
  for (const Row& row : kRows) {
    for (const AxesCase& axes_case : cases) {
      OpCheck check;
      check.op = cat(row.name, " over ", axes_case.axes);
      check.dtypes = {DType::f32, DType::bf16, DType::f64};
      check.strided = false;
      check.any_threads = true;
      check.run = [&](const Tensors& in) { return Tensors{call(row, in[0], axes_case.axes, false)}; };
      check.reference = [&](const Arrays& in) {
        return Arrays{reduce_reference(row.op, in[0], axes_case.axes, false, row.correction)};
      };
      check_op(check, {{"values", {{axes_case.shape, -1, 2}}}});
    }
  }
}

TEST_CASE("a sum of ones of 16-bit floats counts exactly, far beyond their integer range") {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    CHECK(sum(make_tensor(Array({1 << 15}, 1), dtype)).item() == 32768);
    CHECK(mean(make_tensor(Array({100000}, 1), dtype)).item() == 1);
  }
}

TEST_CASE("the variance of numbers far from zero does not cancel") {
  Array x = random_array({50000}, 4);
  for (double& value : x.values) value += 4096;
  const Tensor tensor = make_tensor(x, DType::f32);
  const Array rounded = to_array(tensor);
  check_close("variance", variance(tensor), reduce_reference(ReduceOp::variance, rounded, {}, false, 1), DType::f32,
              1e-4);
}

TEST_CASE("moments give the mean in f32 beside the variance") {
  OpCheck check;
  check.op = "moments";
  check.run = [](const Tensors& in) {
    const Moments both = moments(in[0], {0, 2}, 1, true);
    return Tensors{both.variance, both.mean};
  };
  check.reference = [](const Arrays& in) {
    Array mean = reduce_reference(ReduceOp::mean, in[0], {0, 2}, true);
    mean.dtype = DType::f32;
    return Arrays{reduce_reference(ReduceOp::variance, in[0], {0, 2}, true, 1), mean};
  };
  check_op(check, unary_cases({{3, 4, 5}, {1, 2, 2}, {6, 1, 300}}));
}

TEST_CASE("infinities and NaN go through reductions") {
  const double inf = HUGE_VAL, nan = std::nan("");
  const auto of = [](ReduceOp op, const std::vector<double>& values) {
    return reduce(op, make_tensor(Array({static_cast<std::int64_t>(values.size())}, values), DType::f32)).item();
  };
  CHECK(of(ReduceOp::logsumexp, {-inf, -inf}) == -inf);
  CHECK(of(ReduceOp::logsumexp, {-inf, 2}) == 2);
  CHECK(of(ReduceOp::logsumexp, {inf, 2}) == inf);
  CHECK(of(ReduceOp::logsumexp, {500, 500}) == doctest::Approx(500 + std::log(2)));
  for (const Row& row : kRows) CHECK_MESSAGE(std::isnan(of(row.op, {1, nan, 3, 2})), row.name);
  CHECK(of(ReduceOp::max, {-inf, -3}) == -3);
  CHECK(of(ReduceOp::max, {-inf, -inf}) == -inf);
  CHECK(of(ReduceOp::min, {inf, 5}) == 5);
}

TEST_CASE("argmax finds the first largest element along any axis") {
  const std::vector<AxesCase> cases = {{{1}, {0}},       {{5}, {0}},       {{4, 3000}, {1}},
                                       {{70, 300}, {0}}, {{3, 4, 5}, {1}}, {{3, 4, 5}, {2}},
                                       {{3, 1, 5}, {1}}, {{0, 3}, {1}},    {{2, 0}, {0}}};
  for (const AxesCase& axes_case : cases) {
    const int axis = static_cast<int>(axes_case.axes[0]);
    OpCheck check;
    check.op = cat("argmax along ", axis);
    check.dtypes = {DType::f32, DType::bf16, DType::f16, DType::f64, DType::i64, DType::i32};
    check.run = [&](const Tensors& in) { return Tensors{argmax(in[0], axis, true)}; };
    check.reference = [&](const Arrays& in) {
      Shape with_ones;
      const auto members = groups(in[0], 1u << axis, with_ones);
      Array index(with_ones);
      index.dtype = DType::i64;
      for (std::int64_t i = 0; i < index.numel(); ++i) {
        const auto& values = members[static_cast<std::size_t>(i)];
        index[i] = static_cast<double>(std::max_element(values.begin(), values.end()) - values.begin());
      }
      return Arrays{index};
    };
    // A range of 20 integers: many ties.
    check_op(check, {{"values", {{axes_case.shape, -10, 10}}}});
  }
  const Tensor with_nan = make_tensor(Array({5}, {1, 9, std::nan(""), 3, std::nan("")}), DType::f32);
  CHECK(argmax(with_nan, 0).item() == 2);
  CHECK(argmax(Tensor::zeros({4, 3}, DType::f32), 1).shape() == Shape{4});
}

TEST_CASE("the gradient of every reduction matches central differences") {
  for (const Row& row : kRows) {
    for (const AxesCase& axes_case : kAxesCases) {
      if (axes_case.shape.numel() == 0) continue;
      const auto count = [&](const Tensor& x) {
        return static_cast<double>(x.numel()) / static_cast<double>(call(row, x, axes_case.axes, true).numel());
      };
      if (row.op == ReduceOp::variance && count(Tensor::zeros(axes_case.shape, DType::f32)) <= row.correction) continue;
      GradientCheck check;
      check.op = cat(row.name, " over ", axes_case.axes);
      check.scale = 0.5;
      check.forward = [&](const Tensors& in) { return Tensors{call(row, in[0], axes_case.axes, true)}; };
      check.backward = [&](const Tensors& in, const Tensors& dy) {
        const bool is_variance = row.op == ReduceOp::variance;
        const Tensor y = is_variance ? moments(in[0], axes_case.axes, row.correction, true).mean
                                     : call(row, in[0], axes_case.axes, true);
        const double n = count(in[0]);
        const double factor = row.op == ReduceOp::mean ? 1 / n : is_variance ? 2 / (n - row.correction) : 1;
        return Tensors{reduce_backward(row.op, in[0], y, dy[0], factor)};
      };
      // All positive for the norms (no kink at zero) but the step from the smallest is far above the difference.
      check_gradient(check, {{"values", {{axes_case.shape, 0.25, 3}}}});
    }
  }
}

TEST_CASE("recorded reductions give the gradients that differences give") {
  using autograd::Variable;
  for (const bool keepdim : {false, true}) {
    for (const AxesCase& axes_case : kAxesCases) {
      if (axes_case.shape.numel() < 2) continue;
      for (const Row& row : kRows) {
        if (row.op == ReduceOp::variance && axes_case.axes == Shape{1} && axes_case.shape[1] == 1) continue;
        GradientCheck check =
            variable_check(cat(row.name, " over ", axes_case.axes), [&](const std::vector<Variable>& in) {
              return std::vector<Variable>{row.op == ReduceOp::variance
                                               ? autograd::variance(in[0], axes_case.axes, row.correction, keepdim)
                                               : autograd::reduce(row.op, in[0], axes_case.axes, keepdim)};
            });
        check.dtypes = {DType::f32};
        check.strided = false;
        check.scale = 0.5;
        check_gradient(check, {{"values", {{axes_case.shape, 0.25, 3}}}});
      }
    }
  }
}

TEST_CASE("elements that share a maximum share its gradient") {
  const autograd::Variable x(Tensor::from_values<float>(std::vector<float>{1, 5, 5, 2}, {4}), true);
  autograd::backward(autograd::max(x));
  CHECK(x.grad().to_vector<float>() == std::vector<float>{0, 0.5f, 0.5f, 0});
}

TEST_CASE("reductions refuse bad axes, dtypes and empty choices by name") {
  const Tensor x = Tensor::zeros({2, 3}, DType::f32);
  CHECK_THROWS_AS(sum(x, {2}), ShapeError);
  CHECK_THROWS_AS(sum(x, {0, -2}), ShapeError);
  CHECK_THROWS_AS(sum(Tensor::zeros({2}, DType::i64)), DTypeError);
  CHECK_THROWS_AS(max(Tensor::zeros({2, 0}, DType::f32), {1}), ShapeError);
  CHECK(max(Tensor::zeros({0, 2}, DType::f32), {1}).shape() == Shape{0});
  CHECK_THROWS_AS(norm(x, 3), ConfigError);
  CHECK_THROWS_AS(argmax(x, 2), ShapeError);
  CHECK_THROWS_AS(argmax(Tensor::zeros({2, 0}, DType::f32), 1), ShapeError);
  CHECK_THROWS_AS(argmax(Tensor::zeros({2}, DType::boolean), 0), DTypeError);
  CHECK_THROWS_AS(reduce_backward(ReduceOp::sum, x, x, Tensor::zeros({2, 3}, DType::f64)), DTypeError);
  CHECK_THROWS_AS(reduce_backward(ReduceOp::sum, x, x, Tensor::zeros({4}, DType::f32)), ShapeError);
}

}  // namespace castor
