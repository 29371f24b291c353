// A linear layer and the cross entropy of its results as one op: against f64, against the two ops it replaces, and
// with more rows than it holds logits for at a time.
#include "core/ops/linear_cross_entropy.h"

#include <cmath>
#include <type_traits>

#include <doctest/doctest.h>

#include "autograd/graph.h"
#include "autograd/ops/softmax.h"
#include "core/ops/cast.h"
#include "tests/support/op_check.h"

namespace castor {
namespace {

using namespace castor::test;
using autograd::Variable;
using Variables = std::vector<Variable>;

const std::vector<DType> kAllFloats = {DType::f32, DType::bf16, DType::f16, DType::f64};
constexpr std::int64_t kManyRows = kLinearCrossEntropyRows + 700;

OpCase rows_case(std::int64_t rows, std::int64_t k, std::int64_t classes, bool ignores = false) {
  OpCase row{cat(rows, " rows of ", k, ", ", classes, " classes"),
             {{{rows, k}}, {{classes, k}}, {{rows}, 0, static_cast<double>(classes), DType::i64}}};
  for (std::int64_t i = 0; ignores && i < rows; ++i)
    row.operands[2].values.push_back(i % 3 == 1 ? -100.0 : static_cast<double>(i * 7 % classes));
  return row;
}

/// Loss and gradients in f64, of logits that are rounded to the dtype as the op's are.
Arrays reference(const Array& x, const Array& weight, const Array& targets, const CrossEntropyOptions& options) {
  const std::int64_t rows = x.shape[0], k = x.shape[1], classes = weight.shape[0];
  Array loss(Shape{}), dx(x.shape), dweight(weight.shape);
  loss.dtype = *x.dtype == DType::f64 ? DType::f64 : DType::f32;
  double counted = 0;
  for (std::int64_t row = 0; row < rows; ++row) counted += targets[row] != static_cast<double>(options.ignore_index);
  const double factor = options.reduction == Reduction::mean ? 1 / std::max(counted, 1.0) : 1;
  Array logits({rows, classes});
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t c = 0; c < classes; ++c) {
      for (std::int64_t i = 0; i < k; ++i) logits[row * classes + c] += x[row * k + i] * weight[c * k + i];
    }
  }
  logits = to_array(make_tensor(logits, *x.dtype));
  for (std::int64_t row = 0; row < rows; ++row) {
    if (targets[row] == static_cast<double>(options.ignore_index)) continue;
    double sum = 0;
    for (std::int64_t c = 0; c < classes; ++c) sum += std::exp(logits[row * classes + c]);
    for (std::int64_t c = 0; c < classes; ++c) {
      const double log_share = logits[row * classes + c] - std::log(sum);
      const double wanted = (c == static_cast<std::int64_t>(targets[row]) ? 1 - options.label_smoothing : 0) +
                            options.label_smoothing / static_cast<double>(classes);
      loss[0] -= wanted * log_share * factor;
      const double gradient = (std::exp(log_share) - wanted) * factor;
      for (std::int64_t i = 0; i < k; ++i) {
        dx[row * k + i] += gradient * weight[c * k + i];
        dweight[c * k + i] += gradient * x[row * k + i];
      }
    }
  }
  return {loss, dx, dweight};
}

OpCheck check_of(const CrossEntropyOptions& options) {
  OpCheck check;
  check.op = cat("linear_cross_entropy, reduction ", static_cast<int>(options.reduction), ", smoothing ",
                 options.label_smoothing);
  check.dtypes = kAllFloats;
  check.slack = 3;
  check.scale = 0.1;  // of one class the gradient is a difference of equal numbers
  check.run = [=](const Tensors& in) {
    const LinearCrossEntropy forward = linear_cross_entropy(in[0], in[1], in[2], options, {});
    const LinearGradients gradients =
        linear_cross_entropy_backward(forward, full({}, 1, forward.loss.dtype(), in[0].device()), options);
    return Tensors{forward.loss, gradients.x, gradients.weight};
  };
  check.reference = [=](const Arrays& in) { return reference(in[0], in[1], in[2], options); };
  return check;
}

}  // namespace

TEST_CASE("linear_cross_entropy gives loss and gradients of its f64 reference for every option") {
  for (const Reduction reduction : {Reduction::mean, Reduction::sum}) {
    for (const double smoothing : {0.0, 0.1}) {
      check_op(check_of({-100, smoothing, reduction}),
               {rows_case(7, 6, 5), rows_case(6, 16, 33, true), rows_case(1, 1, 1), rows_case(0, 3, 4)});
    }
  }
}

TEST_CASE("linear_cross_entropy adds up more rows than it has logits for at a time") {
  OpCheck check = check_of({});
  check.strided = false;
  check_op(check, {rows_case(kManyRows, 3, 6, true), rows_case(kLinearCrossEntropyRows, 2, 4)});
}

TEST_CASE("gradients of linear_cross_entropy match differences, with several stretches of rows too") {
  GradientCheck check = variable_check("linear_cross_entropy", [](const Variables& in) {
    return Variables{autograd::linear_cross_entropy(in[0], in[1], in[2].data())};
  });
  check.slack = 4;
  check_gradient(check, {rows_case(5, 4, 3), rows_case(4, 6, 9, true)});
}

TEST_CASE("linear_cross_entropy has the bits of the two ops it replaces while one stretch holds all rows") {
  for (const Device device : test_devices()) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      const Tensor x = make_tensor(random_array({40, 24}, 1), dtype, device),
                   weight = make_tensor(random_array({2000, 24}, 2), dtype, device),
                   targets = make_tensor(random_array({40}, 3, 0, 2000), DType::i64, device);
      const Tensor logits = matmul(x, weight.transpose(0, 1));
      const CrossEntropy apart = cross_entropy(logits, targets, {}, true);
      const LinearCrossEntropy joined = linear_cross_entropy(x, weight, targets, {}, {});
      check_same_bits("loss", joined.loss, apart.loss);
      check_same_bits("dx", joined.x, matmul(apart.gradient, weight));
      check_same_bits("dweight", joined.weight, matmul(apart.gradient.transpose(0, 1), x));
    }
  }
}

TEST_CASE("linear_cross_entropy computes what is asked for, and a kept graph gives the same gradients twice") {
  const Tensor x = make_tensor(random_array({2, 3, 4}, 1), DType::f32),
               weight = make_tensor(random_array({5, 4}, 2), DType::f32),
               targets = make_tensor(random_array({2, 3}, 3, 0, 5), DType::i64);
  const LinearCrossEntropy loss_only =
      linear_cross_entropy(reshape(x, {6, 4}), weight, reshape(targets, {6}), {}, {false, false});
  CHECK_FALSE(loss_only.x.defined());
  CHECK_FALSE(loss_only.weight.defined());
  // Neither a bias nor places for gradients can be asked for: it has none.
  CHECK_FALSE(std::is_invocable_v<decltype(castor::linear_cross_entropy), Tensor, Tensor, Tensor, CrossEntropyOptions,
                                  LinearNeeds>);
  const Variable input(x, true), matrix(weight, true);
  const Variable loss = autograd::linear_cross_entropy(input, matrix, targets);
  check_same_bits("loss", loss.data(), loss_only.loss);
  const Tensor three = full({}, 3, DType::f32);
  autograd::backward(loss, {three, nullptr, true});
  const Tensor dx = input.grad(), dweight = matrix.grad();
  CHECK(dx.shape() == x.shape());
  input.set_grad({});
  matrix.set_grad({});
  autograd::backward(loss, {three, nullptr, false});
  check_same_bits("second gradient of x", input.grad(), dx);
  check_same_bits("second gradient of the weight", matrix.grad(), dweight);
}

TEST_CASE("a loss scale keeps f16 gradients of many rows and a common target finite") {
  const std::int64_t rows = kManyRows;
  const Variable x(make_tensor(Array({rows, 2}, 10), DType::f16), true),
      weight(make_tensor(Array({4, 2}, 0), DType::f16), true);
  const Variable loss = autograd::linear_cross_entropy(x, weight, Tensor::zeros({rows}, DType::i64));
  autograd::backward(loss, {full({}, 1024, DType::f32), nullptr, false});
  CHECK(to_array(weight.grad()).at({1, 0}) == doctest::Approx(1024 * 0.25 * 10).epsilon(1e-3));
  CHECK(to_array(weight.grad()).at({0, 0}) == doctest::Approx(-1024 * 0.75 * 10).epsilon(1e-3));
}

TEST_CASE("a product is added to f32 in one rounding, and a 16-bit result refuses") {
  for (const Device device : test_devices()) {
    const Array a = random_array({5, 70}, 1), b = random_array({70, 9}, 2), start = random_array({5, 9}, 3);
    const Tensor left = make_tensor(a, DType::bf16, device), right = make_tensor(b, DType::bf16, device);
    const Tensor sum = make_tensor(start, DType::f32, device);
    matmul_into(left, right, sum, true);
    const Array x = to_array(left), y = to_array(right);
    Array want = start;
    for (std::int64_t i = 0; i < 5; ++i) {
      for (std::int64_t j = 0; j < 9; ++j) {
        for (std::int64_t k = 0; k < 70; ++k) want[i * 9 + j] += x[i * 70 + k] * y[k * 9 + j];
      }
    }
    check_close("sum of products", sum, want, DType::f32, 4e-6, 1);
    const Tensor narrow = Tensor::zeros({5, 9}, DType::bf16, device);
    CHECK_THROWS_AS(matmul_into(left, right, narrow, true), DTypeError);
    CHECK_THROWS_AS(matmul_into(left, right.transpose(0, 1), sum), ShapeError);
    CHECK_THROWS_AS(matmul_into(left, right, Tensor::zeros({9, 5}, DType::f32, device)), ShapeError);
  }
}

TEST_CASE("linear_cross_entropy refuses wrong shapes, dtypes, targets and reductions by name") {
  const Tensor x = Tensor::zeros({2, 3}, DType::f32), weight = Tensor::zeros({4, 3}, DType::f32),
               targets = Tensor::zeros({2}, DType::i64);
  const auto call = [&](const Tensor& a, const Tensor& b, const Tensor& t, const CrossEntropyOptions& options = {}) {
    return linear_cross_entropy(a, b, t, options, {});
  };
  CHECK_THROWS_AS(call(x, Tensor::zeros({4, 2}, DType::f32), targets), ShapeError);
  CHECK_THROWS_AS(call(x, weight, Tensor::zeros({3}, DType::i64)), ShapeError);
  CHECK_THROWS_AS(call(x, weight, Tensor::zeros({2}, DType::f32)), DTypeError);
  CHECK_THROWS_AS(call(x, Tensor::zeros({4, 3}, DType::f64), targets), DTypeError);
  CHECK_THROWS_AS(call(x, weight, full({2}, 4, DType::i64)), ShapeError);
  CHECK_THROWS_AS(call(x, weight, targets, {-100, 0, Reduction::none}), ConfigError);
  CHECK_THROWS_AS(call(x, weight, targets, {-100, 2, Reduction::mean}), ConfigError);
}

}  // namespace castor
