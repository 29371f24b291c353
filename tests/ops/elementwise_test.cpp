// The elementwise family against f64: every functor on every float dtype, broadcasting, and gradients.
//
// Delicate: domains keep away from poles and kinks; steep functions have a larger slack, said at their row.
#include "core/ops/elementwise.h"

#include <algorithm>
#include <cmath>

#include <doctest/doctest.h>

#include "core/ops/cast.h"
#include "tests/support/op_check.h"

namespace castor {
namespace {

using namespace castor::test;

struct UnaryRow {
  const char* name;
  UnaryOp op;
  double (*value)(double x, double a, double b);
  double low;
  double high;
  double slack = 1;
  double a = 0;
  double b = 0;
  double scale = 0;
};

double gelu_tanh_reference(double x, double, double) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

const std::vector<UnaryRow>& unary_rows() {
  static const std::vector<UnaryRow> rows = {
      {"affine", UnaryOp::affine, [](double x, double a, double b) { return a * x + b; }, -3, 3, 1, 1.5, -0.25},
      {"clamp", UnaryOp::clamp, [](double x, double a, double b) { return std::min(std::max(x, a), b); }, -3, 3, 1,
       -0.5, 1.25},
      // x^a has the relative condition a, and C's powf is good to one unit.
      {"pow", UnaryOp::pow, [](double x, double a, double) { return std::pow(x, a); }, 0.3, 3, 2, 2.5},
      {"abs", UnaryOp::abs, [](double x, double, double) { return std::abs(x); }, -3, 3},
      {"exp", UnaryOp::exp, [](double x, double, double) { return std::exp(x); }, -4, 4},
      {"log", UnaryOp::log, [](double x, double, double) { return std::log(x); }, 0.05, 9},
      {"sqrt", UnaryOp::sqrt, [](double x, double, double) { return std::sqrt(x); }, 0.05, 9},
      {"rsqrt", UnaryOp::rsqrt, [](double x, double, double) { return 1 / std::sqrt(x); }, 0.05, 9},
      {"reciprocal", UnaryOp::reciprocal, [](double x, double, double) { return 1 / x; }, 0.2, 5},
      {"square", UnaryOp::square, [](double x, double, double) { return x * x; }, -3, 3},
      {"erf", UnaryOp::erf, [](double x, double, double) { return std::erf(x); }, -3, 3},
      {"tanh", UnaryOp::tanh, [](double x, double, double) { return std::tanh(x); }, -3, 3},
      {"sigmoid", UnaryOp::sigmoid, [](double x, double, double) { return 1 / (1 + std::exp(-x)); }, -6, 6, 1, 0, 0,
       0.5},
      {"relu", UnaryOp::relu, [](double x, double, double) { return std::max(x, 0.0); }, -3, 3},
      {"gelu_erf", UnaryOp::gelu_erf, [](double x, double, double) { return 0.5 * x * (1 + std::erf(x * M_SQRT1_2)); },
       -4, 4, 1, 0, 0, 1},
      {"gelu_tanh", UnaryOp::gelu_tanh, gelu_tanh_reference, -4, 4, 1, 0, 0, 1},
      {"silu", UnaryOp::silu, [](double x, double, double) { return x / (1 + std::exp(-x)); }, -6, 6, 1, 0, 0, 0.5},
  };
  return rows;
}

struct BinaryRow {
  const char* name;
  BinaryOp op;
  double (*value)(double x, double y);
  double low;
  double high;
};

const std::vector<BinaryRow>& binary_rows() {
  static const std::vector<BinaryRow> rows = {
      {"add", BinaryOp::add, [](double x, double y) { return x + y; }, -3, 3},
      {"sub", BinaryOp::sub, [](double x, double y) { return x - y; }, -3, 3},
      {"mul", BinaryOp::mul, [](double x, double y) { return x * y; }, -3, 3},
      {"div", BinaryOp::div, [](double x, double y) { return x / y; }, 0.3, 3},
      {"pow", BinaryOp::pow, [](double x, double y) { return std::pow(x, y); }, 0.3, 3},
      {"maximum", BinaryOp::maximum, [](double x, double y) { return std::max(x, y); }, -3, 3},
      {"minimum", BinaryOp::minimum, [](double x, double y) { return std::min(x, y); }, -3, 3},
  };
  return rows;
}

const std::vector<DType> kAllFloats = {DType::f32, DType::bf16, DType::f16, DType::f64};

/// Pairs of shapes that broadcast: to each other, from a scalar, from inner and outer axes, empty.
std::vector<OpCase> broadcast_cases(double low, double high) {
  const std::vector<std::pair<Shape, Shape>> pairs = {
      {{}, {}},
      {{5}, {}},
      {{}, {2, 3}},
      {{3, 17}, {3, 17}},
      {{3, 17}, {17}},
      {{17}, {3, 17}},
      {{3, 1}, {1, 4}},
      {{2, 1, 5}, {3, 1}},
      {{1, 1, 1}, {1}},
      {{0, 3}, {3}},
      {{2, 0}, {1}},
      {{2, 3, 4, 5}, {4, 1}},
      {{4, 1, 70}, {1, 6, 1}},
      {{1}, {2, 3, 1, 2, 2}},
  };
  std::vector<OpCase> cases;
  for (const auto& [x, y] : pairs) cases.push_back({"broadcast", {{x, low, high}, {y, low, high}}});
  return cases;
}

template <class F>
Array map2(const Array& x, const Array& y, F f) {
  const Shape shape = broadcast_shapes(x.shape, y.shape, "reference");
  const Array a = x.broadcast_to(shape), b = y.broadcast_to(shape);
  Array z(shape);
  for (std::int64_t i = 0; i < z.numel(); ++i) z[i] = f(a[i], b[i]);
  return z;
}

}  // namespace

TEST_CASE("every unary op matches its f64 reference on random shapes of every float dtype") {
  for (const UnaryRow& row : unary_rows()) {
    OpCheck check;
    check.op = row.name;
    check.dtypes = kAllFloats;
    check.slack = row.slack;
    check.scale = row.scale;
    check.run = [&](const Tensors& in) { return Tensors{unary(row.op, in[0], row.a, row.b)}; };
    check.reference = [&](const Arrays& in) {
      Array y(in[0].shape);
      for (std::int64_t i = 0; i < y.numel(); ++i) y[i] = row.value(in[0][i], row.a, row.b);
      return Arrays{y};
    };
    check_op(check, unary_cases(random_shapes(7, 0, 4, 9, 11), row.low, row.high));
  }
}

TEST_CASE("every unary op's slope matches central differences") {
  for (const UnaryRow& row : unary_rows()) {
    GradientCheck check;
    check.op = row.name;
    check.slack = 2 * row.slack;
    check.scale = row.scale;
    check.forward = [&](const Tensors& in) { return Tensors{unary(row.op, in[0], row.a, row.b)}; };
    check.backward = [&](const Tensors& in, const Tensors& dy) {
      const bool by_output = slope_uses_output_only(row.op);
      const Tensor y = by_output ? unary(row.op, in[0], row.a, row.b) : Tensor();
      return Tensors{unary_backward(row.op, by_output ? Tensor() : in[0], y, dy[0], row.a, row.b)};
    };
    check_gradient(check, unary_cases({{}, {3, 7}, {0, 2}, {2, 1, 5}}, row.low, row.high));
  }
}

TEST_CASE("unary ops in place write the same bits as out of place") {
  for (const UnaryRow& row : unary_rows()) {
    for (const DType dtype : kAllFloats) {
      const Tensor x = make_tensor(random_array({5, 13}, 3, row.low, row.high), dtype, kCpu, Layout::permuted);
      const Tensor y = unary(row.op, x, row.a, row.b);
      unary_inplace(row.op, x, row.a, row.b);
      check_same_bits(cat(row.name, " in place, ", dtype), x, y);
    }
  }
}

TEST_CASE("f32 functions keep their accuracy and special values over their whole range") {
  const double inf = HUGE_VAL, nan = std::nan("");
  const auto values_of = [](UnaryOp op, const std::vector<double>& x) {
    const Array in({static_cast<std::int64_t>(x.size())}, x);
    return to_array(unary(op, make_tensor(in, DType::f32)));
  };
  const auto expect = [&](UnaryOp op, const std::vector<double>& x, const std::vector<double>& want) {
    const Array got = values_of(op, x);
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double y = got.values[i];
      CHECK_MESSAGE((std::isnan(want[i]) ? std::isnan(y) : y == want[i]), "op ", static_cast<int>(op), " of ", x[i],
                    " gives ", y);
    }
  };
  expect(UnaryOp::exp, {0, -inf, inf, nan, 100, -200}, {1, 0, inf, nan, inf, 0});
  expect(UnaryOp::log, {1, 0, inf, nan, -1}, {0, -inf, inf, nan, nan});
  expect(UnaryOp::tanh, {0, -inf, inf, nan, 40}, {0, -1, 1, nan, 1});
  expect(UnaryOp::sigmoid, {0, -inf, inf, nan}, {0.5, 0, 1, nan});
  expect(UnaryOp::erf, {0, -inf, inf, nan, 30}, {0, -1, 1, nan, 1});
  expect(UnaryOp::sqrt, {0, 4, inf, -1}, {0, 2, inf, nan});
  expect(UnaryOp::reciprocal, {0, inf, -4}, {inf, 0, -0.25});
  expect(UnaryOp::relu, {-2, 0, 3, inf, nan}, {0, 0, 3, inf, nan});
}

TEST_CASE("every binary op matches its f64 reference with broadcasting") {
  for (const BinaryRow& row : binary_rows()) {
    OpCheck check;
    check.op = row.name;
    check.dtypes = kAllFloats;
    check.slack = 2;
    check.run = [&](const Tensors& in) { return Tensors{binary(row.op, in[0], in[1])}; };
    check.reference = [&](const Arrays& in) { return Arrays{map2(in[0], in[1], row.value)}; };
    check_op(check, broadcast_cases(row.low, row.high));
  }
}

TEST_CASE("integer arithmetic is exact and refuses division") {
  for (const BinaryRow& row : binary_rows()) {
    for (const DType dtype : {DType::i64, DType::i32}) {
      const Tensor x = make_tensor(random_array({4, 5}, 1, -9, 9), dtype),
                   y = make_tensor(random_array({5}, 2, -9, 9), dtype);
      if (row.op == BinaryOp::div || row.op == BinaryOp::pow) {
        CHECK_THROWS_AS(binary(row.op, x, y), DTypeError);
      } else {
        check_close(cat(row.name, " ", dtype), binary(row.op, x, y), map2(to_array(x), to_array(y), row.value), dtype,
                    0);
      }
    }
  }
}

TEST_CASE("binary ops in place write over the first operand and broadcast the second") {
  for (const DType dtype : kAllFloats) {
    const Tensor x = make_tensor(random_array({3, 4, 5}, 5), dtype, kCpu, Layout::sliced);
    const Tensor y = make_tensor(random_array({4, 1}, 6), dtype);
    const Tensor z = add(x, y);
    binary_inplace(BinaryOp::add, x, y);
    check_same_bits(cat("add in place, ", dtype), x, z);
  }
}

TEST_CASE("comparisons give bool with broadcasting on every dtype") {
  struct Row {
    CompareOp op;
    bool (*value)(double, double);
  };
  const Row rows[] = {
      {CompareOp::eq, [](double x, double y) { return x == y; }},
      {CompareOp::ne, [](double x, double y) { return x != y; }},
      {CompareOp::lt, [](double x, double y) { return x < y; }},
      {CompareOp::le, [](double x, double y) { return x <= y; }},
      {CompareOp::gt, [](double x, double y) { return x > y; }},
      {CompareOp::ge, [](double x, double y) { return x >= y; }},
  };
  for (const Row& row : rows) {
    OpCheck check;
    check.op = cat("compare ", static_cast<int>(row.op));
    check.dtypes = {DType::f32, DType::bf16, DType::f16, DType::f64, DType::i64, DType::i32, DType::u8};
    check.run = [&](const Tensors& in) { return Tensors{compare(row.op, in[0], in[1])}; };
    check.reference = [&](const Arrays& in) {
      Array z = map2(in[0], in[1], row.value);
      z.dtype = DType::boolean;
      return Arrays{z};
    };
    check_op(check, broadcast_cases(0, 4));
  }
}

TEST_CASE("where selects with broadcasting of all three operands") {
  OpCheck check;
  check.op = "where";
  check.dtypes = {DType::f32, DType::bf16, DType::f16, DType::f64, DType::i64, DType::boolean};
  check.run = [](const Tensors& in) { return Tensors{where(in[0], in[1], in[2])}; };
  check.reference = [](const Arrays& in) {
    const Shape shape = broadcast_shapes(broadcast_shapes(in[0].shape, in[1].shape, ""), in[2].shape, "");
    const Array c = in[0].broadcast_to(shape), x = in[1].broadcast_to(shape), y = in[2].broadcast_to(shape);
    Array z(shape);
    for (std::int64_t i = 0; i < z.numel(); ++i) z[i] = c[i] != 0 ? x[i] : y[i];
    return Arrays{z};
  };
  const auto row = [](const Shape& c, const Shape& x, const Shape& y) {
    return OpCase{"where", {{c, 0, 2, DType::boolean}, {x, -5, 5}, {y, -5, 5}}};
  };
  check_op(check, {row({}, {}, {}), row({4, 5}, {4, 5}, {4, 5}), row({4, 1}, {5}, {}), row({0}, {0}, {1}),
                   row({1, 3, 1}, {2, 1, 1}, {7})});
}

TEST_CASE("elementwise results keep the memory order of their operand") {
  const Tensor x = Tensor::empty({2, 5, 3, 4}, DType::f32).permute({0, 3, 1, 2});
  const Tensor y = unary(UnaryOp::relu, x);
  CHECK(y.strides() == x.strides());
  CHECK(add(x, Tensor::zeros({4, 1, 1}, DType::f32)).strides() == x.strides());
}

TEST_CASE("elementwise results do not depend on the number of threads") {
  OpCheck check;
  check.op = "gelu of many elements";
  check.any_threads = true;
  check.strided = false;
  check.run = [](const Tensors& in) { return Tensors{unary(UnaryOp::gelu_tanh, in[0])}; };
  check.reference = [](const Arrays& in) {
    Array y(in[0].shape);
    for (std::int64_t i = 0; i < y.numel(); ++i) y[i] = gelu_tanh_reference(in[0][i], 0, 0);
    return Arrays{y};
  };
  check_op(check, unary_cases({{3, 20011}}));
}

TEST_CASE("elementwise ops refuse wrong dtypes, shapes and devices by name") {
  const Tensor f32 = Tensor::zeros({2, 3}, DType::f32), i64 = Tensor::zeros({2, 3}, DType::i64);
  const Device meta = make_meta({DeviceType::cpu, "", 0});
  CHECK_THROWS_AS(unary(UnaryOp::exp, i64), DTypeError);
  CHECK_THROWS_AS(unary(UnaryOp::exp, Tensor::zeros({1}, DType::f8e4m3)), DTypeError);
  CHECK_THROWS_AS(add(f32, i64), DTypeError);
  CHECK_THROWS_AS(add(f32, Tensor::zeros({4}, DType::f32)), ShapeError);
  CHECK_THROWS_AS(add(f32, Tensor::empty({2, 3}, DType::f32, meta)), DeviceError);
  CHECK_THROWS_AS(binary_inplace(BinaryOp::add, Tensor::zeros({3}, DType::f32), f32), ShapeError);
  CHECK_THROWS_AS(where(f32, f32, f32), DTypeError);
  CHECK_THROWS_AS(compare(CompareOp::eq, f32, i64), DTypeError);
  CHECK_THROWS_AS(unary_backward(UnaryOp::relu, f32, Tensor(), Tensor::zeros({3, 2}, DType::f32)), ShapeError);
  CHECK_THROWS_AS(unary_backward(UnaryOp::exp, f32, Tensor(), f32), InternalError);
}

}  // namespace castor
