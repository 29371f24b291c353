// The 8-bit conversions against a reference that searches the format's table for the nearest value, and the linear
// layer that multiplies what they give.
#include "core/ops/fp8.h"

#include <algorithm>
#include <cmath>

#include <doctest/doctest.h>

#include "autograd/graph.h"
#include "autograd/ops/matmul.h"
#include "core/ops/cast.h"
#include "core/ops/matmul.h"
#include "tests/support/op_check.h"

namespace castor {
namespace {

using namespace castor::test;

constexpr DType kFormats[] = {DType::f8e4m3, DType::f8e5m2};

/// Every finite value of a format from 0 on, in order.
std::vector<double> table_of(DType format) {
  const int mantissa = format == DType::f8e4m3 ? 3 : 2, bias = format == DType::f8e4m3 ? 7 : 15;
  const int last = format == DType::f8e4m3 ? 0x7E : 0x7B;
  std::vector<double> values;
  for (int bits = 0; bits <= last; ++bits) {
    const int exponent = bits >> mantissa, fraction = bits & ((1 << mantissa) - 1);
    values.push_back(exponent == 0 ? std::ldexp(fraction, 1 - bias - mantissa)
                                   : std::ldexp(fraction + (1 << mantissa), exponent - bias - mantissa));
  }
  return values;
}

/// The nearest value of the table, of two equally near ones that with an even place (and last bit).
double nearest(const std::vector<double>& table, double x) {
  std::size_t best = 0;
  for (std::size_t i = 0; i < table.size(); ++i) {
    const double distance = std::abs(table[i] - std::abs(x)), least = std::abs(table[best] - std::abs(x));
    if (distance < least || (distance == least && i % 2 == 0)) best = i;
  }
  return std::copysign(table[best], x);
}

double scale_reference(const Array& x, DType format) {
  double largest = 0;
  for (const double value : x.values) largest = std::max(largest, std::abs(value));
  if (largest == 0) return 1;
  int power = -126;
  while (power < 126 && std::ldexp(largest, power + 1) <= table_of(format).back()) ++power;
  return std::ldexp(1, power);
}

Array round_trip_reference(const Array& x, DType format) {
  const double scale = scale_reference(x, format);
  const std::vector<double> table = table_of(format);
  Array y = x;
  y.dtype = {};
  for (double& value : y.values) value = nearest(table, value * scale) / scale;
  return y;
}

}  // namespace

TEST_CASE("a tensor goes to 8 bits and back as the nearest values of the format under the largest power of two") {
  for (const DType format : kFormats) {
    OpCheck check;
    check.op = cat("fp8 ", format);
    check.slack = 0;
    check.any_threads = true;
    check.run = [=](const Tensors& in) {
      const Fp8Tensor q = fp8_quantise(in[0], format);
      return Tensors{q.values, q.scale, fp8_expand(q, in[0].dtype())};
    };
    check.reference = [=](const Arrays& in) {
      const double scale = scale_reference(in[0], format);
      Array y = round_trip_reference(in[0], format), values = y, of_scale(Shape{}, scale);
      for (double& value : values.values) value *= scale;
      values.dtype = format;
      of_scale.dtype = DType::f32;
      return Arrays{values, of_scale, y};
    };
    for (const double magnitude : {1e-4, 0.9, 700.0}) {
      check_op(check, unary_cases(random_shapes(5, 0, 4, 9, 31), -magnitude, magnitude));
    }
    // Scaled to exactly the largest value, just above it, and ties between neighbours.
    check_op(check, {{"ends", {{.shape = {4}, .values = {1.75, -0.875, 0.5, 0}}}},
                     {"above", {{.shape = {3}, .values = {1.765625, 1, -0.0625}}}},
                     {"ties", {{.shape = {6}, .values = {1.0625, 1.1875, -1.0625, 1.125, 1.375, 1.5}}}},
                     {"zeros", {{.shape = {3}, .values = {0, 0, 0}}}}});
  }
}

TEST_CASE("values that are not finite stay visible and do not touch the scale of the others") {
  for (const Device device : test_devices()) {
    const Array x({4}, {1, HUGE_VAL, -2, std::nan("")});
    for (const DType format : kFormats) {
      const Fp8Tensor q = fp8_quantise(make_tensor(x, DType::f32, device), format);
      const Array y = to_array(fp8_expand(q, DType::f32));
      CHECK(to_array(q.scale)[0] == 1);
      CHECK(y[0] == 1);
      CHECK(std::isnan(y[1]));
      CHECK(y[2] == -2);
      CHECK(std::isnan(y[3]));
    }
  }
}

TEST_CASE("tiny and huge tensors get scales that are normal numbers") {
  const Array tiny({2}, {1e-42, 0}), huge({2}, {3e38, -1});
  CHECK(to_array(fp8_quantise(make_tensor(tiny, DType::f32), DType::f8e4m3).scale)[0] == std::ldexp(1, 126));
  const Fp8Tensor q = fp8_quantise(make_tensor(huge, DType::f32), DType::f8e4m3);
  CHECK(to_array(q.scale)[0] == std::ldexp(1, -120));
  CHECK(to_array(fp8_expand(q, DType::f32))[0] == std::ldexp(1.75, 127));
}

TEST_CASE("other dtypes are refused") {
  const Tensor x = Tensor::zeros({2}, DType::f32);
  CHECK_THROWS_WITH_AS(fp8_quantise(x, DType::bf16), doctest::Contains("f8e4m3 or f8e5m2, got bf16"), DTypeError);
  CHECK_THROWS_AS(fp8_quantise(Tensor::zeros({2}, DType::i64), DType::f8e4m3), DTypeError);
  CHECK_THROWS_AS(fp8_expand({x, x}, DType::f32), DTypeError);
  CHECK_THROWS_AS(fp8_expand(fp8_quantise(x, DType::f8e4m3), DType::f64), DTypeError);
}

TEST_CASE("a linear layer in 8 bits is a linear layer of the rounded operands, forward and backward") {
  for (const Device device : test_devices()) {
    for (const Activation activation : {Activation::none, Activation::relu, Activation::gelu_tanh}) {
      for (const DType dtype : {DType::f32, DType::bf16}) {
        CAPTURE(cat(device, " ", dtype, " ", static_cast<int>(activation)));
        const auto rounded = [](const Tensor& t, DType format) {
          return fp8_expand(fp8_quantise(t, format), t.dtype());
        };
        const auto made = [&](const Shape& shape, std::uint64_t seed) {
          return make_tensor(random_array(shape, seed), dtype, device);
        };
        const Tensor x = made({2, 5, 16}, 1), w = made({8, 16}, 2), b = made({8}, 3), dy = made({2, 5, 8}, 4);
        autograd::Variable vx(x, true), vw(w, true), vb(b, true);
        const autograd::Variable y = autograd::linear_fp8(vx, vw, vb, activation);
        autograd::backward({y}, {clone(dy)}, nullptr);

        const Tensor x8 = rounded(x, DType::f8e4m3), w8 = rounded(w, DType::f8e4m3);
        Tensor saved;
        check_same_bits("y", y.data(), linear(x8, w8, b, activation, &saved));
        // The gradient behind the activation is what is rounded; the bias's is not.
        const LinearGradients plain = linear_backward(clone(dy), x8, w8, saved, activation);
        check_same_bits("db", vb.grad(), plain.bias);
        const Tensor one = make_tensor(Array({8, 8},
                                             [] {
                                               std::vector<double> unit(64, 0.0);
                                               for (std::size_t i = 0; i < 8; ++i) unit[i * 9] = 1;
                                               return unit;
                                             }()),
                                       dtype, device);
        const Tensor behind = linear_backward(clone(dy), dy, one, saved, activation, {true, false, false}).x;
        const LinearGradients of_rounded =
            linear_backward(rounded(behind, DType::f8e5m2), x8, w8, {}, Activation::none, {true, true, false});
        check_same_bits("dx", vx.grad(), of_rounded.x);
        check_same_bits("dw", vw.grad(), of_rounded.weight);
        CHECK_FALSE(to_array(plain.weight).values == to_array(of_rounded.weight).values);
      }
    }
  }
}

}  // namespace castor
