// Softmax, log-softmax and cross entropy against f64, with their gradients and their special cases.
#include "autograd/ops/softmax.h"

#include <cmath>

#include <doctest/doctest.h>

#include "autograd/graph.h"
#include "core/ops/cast.h"
#include "tests/support/op_check.h"

namespace castor {
namespace {

using namespace castor::test;
using autograd::Variable;
using Variables = std::vector<Variable>;

const std::vector<DType> kAllFloats = {DType::f32, DType::bf16, DType::f16, DType::f64};

double log_sum_exp(const double* x, std::int64_t n) {
  double max = -HUGE_VAL, sum = 0;
  for (std::int64_t i = 0; i < n; ++i) max = std::max(max, x[i]);
  for (std::int64_t i = 0; i < n; ++i) sum += std::exp(x[i] - max);
  return max + std::log(sum);
}

Array softmax_reference(const Array& x, bool is_log) {
  const std::int64_t n = x.shape.back();
  Array y(x.shape);
  for (std::int64_t row = 0; row < x.numel(); row += n) {
    const double total = log_sum_exp(&x.values[static_cast<std::size_t>(row)], n);
    for (std::int64_t i = row; i < row + n; ++i) y[i] = is_log ? x[i] - total : std::exp(x[i] - total);
  }
  return y;
}

/// The loss, and its gradient divided as a mean would be (not in f16, where backward divides).
Arrays cross_entropy_reference(const Array& logits, const Array& targets, const CrossEntropyOptions& options) {
  const std::int64_t rows = logits.shape[0], classes = logits.shape[1];
  Array losses({rows}), gradient(logits.shape);
  double counted = 0;
  for (std::int64_t row = 0; row < rows; ++row) counted += targets[row] != static_cast<double>(options.ignore_index);
  const bool is_mean = options.reduction == Reduction::mean;
  const double factor = is_mean && *logits.dtype != DType::f16 ? 1 / std::max(counted, 1.0) : 1;
  for (std::int64_t row = 0; row < rows; ++row) {
    if (targets[row] == static_cast<double>(options.ignore_index)) continue;
    const double* x = &logits.values[static_cast<std::size_t>(row * classes)];
    const double total = log_sum_exp(x, classes);
    for (std::int64_t i = 0; i < classes; ++i) {
      const double wanted = (i == static_cast<std::int64_t>(targets[row]) ? 1 - options.label_smoothing : 0) +
                            options.label_smoothing / static_cast<double>(classes);
      losses[row] -= wanted * (x[i] - total);
      gradient[row * classes + i] = (std::exp(x[i] - total) - wanted) * factor;
    }
  }
  Array loss;
  if (options.reduction == Reduction::none) {
    loss = losses;
  } else {
    loss = Array(Shape{});
    for (const double value : losses.values) loss[0] += value;
    if (is_mean) loss[0] /= std::max(counted, 1.0);
  }
  loss.dtype = *logits.dtype == DType::f64 ? DType::f64 : DType::f32;
  return {loss, gradient};
}

OpCase cross_entropy_case(std::int64_t rows, std::int64_t classes, DType targets, bool ignores) {
  OpCase row{cat("cross entropy of ", rows, " rows"),
             {{{rows, classes}, -4, 4}, {{rows}, 0, static_cast<double>(classes), targets}}};
  if (ignores) {
    for (std::int64_t i = 0; i < rows; ++i)
      row.operands[1].values.push_back(i % 3 == 1 ? -100.0 : static_cast<double>(i * 7 % classes));
  }
  return row;
}

Tensor targets_of(const std::vector<double>& values) {
  return make_tensor(Array({static_cast<std::int64_t>(values.size())}, values), DType::i64);
}

}  // namespace

TEST_CASE("softmax and log_softmax match their f64 reference on short, long and empty rows") {
  for (const bool is_log : {false, true}) {
    OpCheck check;
    check.op = is_log ? "log_softmax" : "softmax";
    check.dtypes = kAllFloats;
    check.slack = 2;
    check.any_threads = true;
    check.run = [&](const Tensors& in) { return Tensors{is_log ? log_softmax(in[0]) : softmax(in[0])}; };
    check.reference = [&](const Arrays& in) { return Arrays{softmax_reference(in[0], is_log)}; };
    check_op(check, unary_cases({{1}, {7}, {3, 1}, {0, 4}, {3, 0}, {2, 3, 33}, {5, 100}, {40, 700}}, -5, 5));
    check.strided = false;
    check_op(check, unary_cases({{2, 9000}}, -5, 5));
  }
}

TEST_CASE("softmax of huge and masked numbers does not overflow") {
  const double inf = HUGE_VAL;
  const Tensor x = make_tensor(Array({2, 3}, {1000, 1000, -inf, 1e30, 0, -1e30}), DType::f32);
  CHECK(softmax(x).to_vector<float>() == std::vector<float>{0.5f, 0.5f, 0, 1, 0, 0});
  CHECK(log_softmax(x).to_vector<float>()[2] == -inf);
}

TEST_CASE("gradients of softmax and log_softmax match differences") {
  for (const bool is_log : {false, true}) {
    GradientCheck check = variable_check(is_log ? "log_softmax" : "softmax", [&](const Variables& in) {
      return Variables{is_log ? autograd::log_softmax(in[0]) : autograd::softmax(in[0])};
    });
    check.scale = is_log ? 1 : 0.1;
    check_gradient(check, unary_cases({{5}, {3, 1}, {0, 4}, {2, 3, 17}}, -2, 2));
  }
}

TEST_CASE("cross entropy gives loss and gradient of its f64 reference for every option") {
  for (const Reduction reduction : {Reduction::mean, Reduction::sum, Reduction::none}) {
    for (const double smoothing : {0.0, 0.1, 1.0}) {
      const CrossEntropyOptions options{-100, smoothing, reduction};
      OpCheck check;
      check.op = cat("cross_entropy, reduction ", static_cast<int>(reduction), ", smoothing ", smoothing);
      check.dtypes = kAllFloats;
      check.slack = 2;
      check.any_threads = true;
      check.run = [&](const Tensors& in) {
        const CrossEntropy result = cross_entropy(in[0], in[1], options, true);
        return Tensors{result.loss, result.gradient};
      };
      check.reference = [&](const Arrays& in) { return cross_entropy_reference(in[0], in[1], options); };
      check_op(check, {cross_entropy_case(7, 5, DType::i64, false), cross_entropy_case(6, 33, DType::i32, true),
                       cross_entropy_case(1, 1, DType::i64, false), cross_entropy_case(0, 4, DType::i64, false)});
      check.strided = false;
      check_op(check, {cross_entropy_case(3, 2500, DType::i64, true)});
    }
  }
}

TEST_CASE("cross entropy without a gradient gives the same bits of loss") {
  const Tensor logits = make_tensor(random_array({9, 3000}, 1, -8, 8), DType::f32);
  const Tensor targets = make_tensor(random_array({9}, 2, 0, 3000), DType::i64);
  check_same_bits("loss", cross_entropy(logits, targets).loss, cross_entropy(logits, targets, {}, true).loss);
  CHECK_FALSE(cross_entropy(logits, targets).gradient.defined());
}

TEST_CASE("cross entropy of very many classes stays accurate") {
  const std::int64_t classes = 300000;
  const Array logits = random_array({2, classes}, 3, -10, 10);
  const Tensor x = make_tensor(logits, DType::f32), targets = targets_of({5, 299999});
  const CrossEntropy result = cross_entropy(x, targets, {}, true);
  const Arrays want = cross_entropy_reference(to_array(x), to_array(targets), {});
  check_close("loss", result.loss, want[0], DType::f32, 2e-6);
  check_close("gradient", result.gradient, want[1], DType::f32, 4e-6);
}

TEST_CASE("gradients of cross entropy match differences for every option") {
  for (const Reduction reduction : {Reduction::mean, Reduction::sum, Reduction::none}) {
    for (const double smoothing : {0.0, 0.1}) {
      GradientCheck check =
          variable_check(cat("cross_entropy, reduction ", static_cast<int>(reduction), ", smoothing ", smoothing),
                         [&](const Variables& in) {
                           return Variables{autograd::cross_entropy(in[0], in[1].data(), {-100, smoothing, reduction})};
                         });
      check_gradient(check, {cross_entropy_case(5, 4, DType::i64, false), cross_entropy_case(4, 9, DType::i32, true)});
    }
  }
}

TEST_CASE("a loss scale keeps f16 gradients of a large batch from vanishing") {
  const std::int64_t rows = 4096, classes = 64;
  const Variable logits(make_tensor(Array({rows, classes}, 0), DType::f16), true);
  const Variable loss =
      autograd::cross_entropy(logits, targets_of(std::vector<double>(static_cast<std::size_t>(rows), 0)));
  autograd::backward(loss, {full({}, 65536, DType::f32), nullptr, false});
  const Array gradient = to_array(logits.grad());
  CHECK(gradient.at({17, 3}) == doctest::Approx(65536.0 / 64 / 4096));
  CHECK(gradient.at({17, 0}) == doctest::Approx(65536.0 * (1.0 / 64 - 1) / 4096));
}

TEST_CASE("a kept graph gives the same gradient twice") {
  const Variable logits(make_tensor(random_array({3, 4}, 5), DType::f32), true);
  const Variable loss = autograd::cross_entropy(logits, targets_of({0, 1, 2}));
  const Tensor three = full({}, 3, DType::f32);
  autograd::backward(loss, {three, nullptr, true});
  const Tensor first = logits.grad();
  logits.set_grad({});
  autograd::backward(loss, {three, nullptr, false});
  check_same_bits("second gradient", logits.grad(), first);
}

TEST_CASE("cross entropy over ignored rows only is zero, with a zero gradient") {
  const Variable logits(make_tensor(random_array({2, 3}, 5), DType::f32), true);
  const Variable loss = autograd::cross_entropy(logits, targets_of({-100, -100}));
  CHECK(loss.data().item() == 0);
  autograd::backward(loss);
  for (const double value : to_array(logits.grad()).values) CHECK(value == 0);
}

TEST_CASE("cross entropy of masked classes and certain rows is exact") {
  const double inf = HUGE_VAL;
  const Tensor logits = make_tensor(Array({2, 3}, {2, -inf, 2, 500, 0, -inf}), DType::f32);
  const CrossEntropy result = cross_entropy(logits, targets_of({0, 0}), {-100, 0, Reduction::none}, true);
  CHECK(result.loss.to_vector<float>()[0] == doctest::Approx(std::log(2)));
  CHECK(result.loss.to_vector<float>()[1] == 0);
  CHECK(result.gradient.to_vector<float>() == std::vector<float>{-0.5f, 0, 0.5f, 0, 0, 0});
}

TEST_CASE("softmax and cross entropy refuse wrong shapes, dtypes and targets by name") {
  const Tensor x = Tensor::zeros({2, 3}, DType::f32);
  CHECK_THROWS_AS(softmax(Tensor::zeros({}, DType::f32)), ShapeError);
  CHECK_THROWS_AS(softmax(Tensor::zeros({2}, DType::i32)), DTypeError);
  CHECK_THROWS_AS(softmax_backward(x, Tensor::zeros({3, 2}, DType::f32)), ShapeError);
  CHECK_THROWS_AS(softmax_backward(x, Tensor::zeros({2, 3}, DType::f64)), DTypeError);
  CHECK_THROWS_AS(cross_entropy(x, targets_of({0})), ShapeError);
  CHECK_THROWS_AS(cross_entropy(Tensor::zeros({2, 3, 4}, DType::f32), targets_of({0, 0})), ShapeError);
  CHECK_THROWS_AS(cross_entropy(x, Tensor::zeros({2}, DType::f32)), DTypeError);
  CHECK_THROWS_AS(cross_entropy(x, targets_of({0, 3})), ShapeError);
  CHECK_THROWS_AS(cross_entropy(x, targets_of({-1, 0})), ShapeError);
  CHECK_THROWS_AS(cross_entropy(Tensor::zeros({2, 0}, DType::f32), targets_of({0, 0})), ShapeError);
  CHECK_THROWS_AS(cross_entropy(x, targets_of({0, 0}), {-100, 1.5, Reduction::mean}), ConfigError);
  const CrossEntropy unwanted = cross_entropy(x, targets_of({0, 0}));
  CHECK_THROWS_AS(cross_entropy_backward(unwanted, unwanted.loss, {}), InternalError);
}

}  // namespace castor
