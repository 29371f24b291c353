// The 8-bit conversions against a reference that searches the format's table for the nearest value, and the linear
// layer that multiplies what they give.
#include <algorithm>
#include <cmath>
#include <tuple>

#include <doctest/doctest.h>

#include "autograd/graph.h"
#include "autograd/ops/gated.h"
#include "autograd/ops/matmul.h"
#include "core/ops/cast.h"
#include "core/ops/fp8_matmul.h"
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
      return Tensors{q.values, q.scale.narrow(0, 1, 1), fp8_expand(q, in[0].dtype())};
    };
    check.reference = [=](const Arrays& in) {
      const double scale = scale_reference(in[0], format);
      Array y = round_trip_reference(in[0], format), values = y, of_scale(Shape{1}, {scale});
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
      CHECK(to_array(q.scale)[1] == 1);
      CHECK(y[0] == 1);
      CHECK(std::isnan(y[1]));
      CHECK(y[2] == -2);
      CHECK(std::isnan(y[3]));
    }
  }
}

TEST_CASE("tiny and huge tensors get scales that are normal numbers") {
  const Array tiny({2}, {1e-42, 0}), huge({2}, {3e38, -1});
  CHECK(to_array(fp8_quantise(make_tensor(tiny, DType::f32), DType::f8e4m3).scale)[1] == std::ldexp(1, 126));
  const Fp8Tensor q = fp8_quantise(make_tensor(huge, DType::f32), DType::f8e4m3);
  CHECK(to_array(q.scale)[1] == std::ldexp(1, -120));
  CHECK(to_array(fp8_expand(q, DType::f32))[0] == std::ldexp(1.75, 127));
}

TEST_CASE("other dtypes are refused") {
  const Tensor x = Tensor::zeros({2}, DType::f32);
  CHECK_THROWS_WITH_AS(fp8_quantise(x, DType::bf16), doctest::Contains("f8e4m3 or f8e5m2, got bf16"), DTypeError);
  CHECK_THROWS_AS(fp8_quantise(Tensor::zeros({2}, DType::i64), DType::f8e4m3), DTypeError);
  CHECK_THROWS_AS(fp8_expand({x, {}, x}, DType::f32), DTypeError);
  CHECK_THROWS_AS(fp8_expand(fp8_quantise(x, DType::f8e4m3), DType::f64), DTypeError);
}

TEST_CASE("both orders of a tensor in 8 bits hold the same values, whichever are made") {
  for (const Device device : test_devices()) {
    for (const Shape& shape :
         {Shape{16, 8}, Shape{3, 5, 7}, Shape{200, 136}, Shape{128, 256}, Shape{136, 9}, Shape{1}}) {
      for (const DType format : kFormats) {
        CAPTURE(cat(device, " ", shape, " ", format));
        const Tensor x = make_tensor(random_array(shape, 5, -3, 3), DType::bf16, device);
        const Fp8Tensor both = fp8_quantise(x, format, {true, true});
        const Fp8Tensor transposed = fp8_quantise(x, format, {false, true}, both.scale);
        const Fp8Tensor values = fp8_quantise(x, format);
        const Array want = to_array(fp8_expand(values, DType::f32));
        CHECK(to_array(fp8_expand(both, DType::f32)).values == want.values);
        const std::int64_t n = shape.back(), rows = x.numel() / n;
        REQUIRE(both.transposed.shape() == Shape{n, rows});
        const Array turned = to_array(fp8_expand({contiguous(both.transposed), {}, both.scale}, DType::f32));
        CHECK(to_array(fp8_expand({contiguous(transposed.transposed), {}, both.scale}, DType::f32)).values ==
              turned.values);
        bool is_transpose = true;
        for (std::int64_t i = 0; i < rows; ++i) {
          for (std::int64_t j = 0; j < n; ++j) is_transpose = is_transpose && turned[j * rows + i] == want[i * n + j];
        }
        CHECK(is_transpose);
      }
    }
  }
}

TEST_CASE("a product of 8-bit tensors is that of what they stand for, the same bits each time") {
  for (const Device device : test_devices()) {
    for (const auto& [m, n, k] :
         {std::tuple(48, 32, 64), std::tuple(10, 8, 16), std::tuple(256, 192, 1024), std::tuple(3, 5, 7)}) {
      for (const DType format : kFormats) {
        for (const DType dtype : {DType::bf16, DType::f16, DType::f32}) {
          CAPTURE(cat(device, " ", m, "x", n, "x", k, " ", format, " ", dtype));
          const Fp8Tensor a = fp8_quantise(make_tensor(random_array({m, k}, 1), DType::f32, device), format),
                          b = fp8_quantise(make_tensor(random_array({n, k}, 2), DType::f32, device), DType::f8e4m3);
          const Tensor bias = make_tensor(random_array({n}, 3), dtype, device);
          const Array of_a = to_array(fp8_expand(a, DType::f32)), of_b = to_array(fp8_expand(b, DType::f32)),
                      of_bias = to_array(bias);
          Array want(Shape{m, n});
          for (std::int64_t i = 0; i < m; ++i) {
            for (std::int64_t j = 0; j < n; ++j) {
              double sum = of_bias[j];
              for (std::int64_t l = 0; l < k; ++l) sum += of_a[i * k + l] * of_b[j * k + l];
              want[i * n + j] = sum;
            }
          }
          const Tensor c = fp8_matmul({a.values, a.scale}, {b.values, b.scale}, dtype, bias);
          check_close("product", c, want, dtype, tolerance(dtype));
          check_same_bits("again", fp8_matmul({a.values, a.scale}, {b.values, b.scale}, dtype, bias), c);
          const Tensor spread = Tensor::zeros({n, 2}, dtype, device).select(1, 1);
          copy_into(bias, spread);
          check_same_bits("strided bias", fp8_matmul({a.values, a.scale}, {b.values, b.scale}, dtype, spread), c);
        }
      }
    }
  }
}

TEST_CASE("the pass over a bias's gradient finds the scale that a pass of its own would find") {
  for (const Device device : test_devices()) {
    for (const Activation activation : {Activation::none, Activation::gelu_erf}) {
      for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
        for (const Shape& shape : {Shape{40, 64}, Shape{3, 7}, Shape{1000, 24}, Shape{0, 8}}) {
          CAPTURE(cat(device, " ", dtype, " ", shape, " ", static_cast<int>(activation)));
          const Tensor dy = make_tensor(random_array(shape, 6, -5, 5), dtype, device),
                       before = make_tensor(random_array(shape, 7), dtype, device);
          Tensor scale;
          const Tensor dx = bias_backward(dy, before, activation, true, {.scale = &scale}).first;
          check_same_bits("scale", scale, fp8_quantise(dx, DType::f8e5m2).scale);
        }
      }
    }
  }
}

TEST_CASE("8-bit products of other sizes and dtypes are refused") {
  const Fp8Tensor a = fp8_quantise(Tensor::zeros({4, 8}, DType::f32), DType::f8e4m3),
                  narrow = fp8_quantise(Tensor::zeros({4, 7}, DType::f32), DType::f8e4m3),
                  gradient = fp8_quantise(Tensor::zeros({4, 8}, DType::f32), DType::f8e5m2);
  const Fp8Operand left{a.values, a.scale};
  CHECK_THROWS_WITH_AS(fp8_matmul(left, {narrow.values, narrow.scale}, DType::bf16), doctest::Contains("b [n, k]"),
                       ShapeError);
  CHECK_THROWS_AS(fp8_matmul(left, left, DType::bf16, Tensor::zeros({5}, DType::bf16)), ShapeError);
  CHECK_THROWS_WITH_AS(fp8_matmul(left, {gradient.values, gradient.scale}, DType::bf16),
                       doctest::Contains("b of f8e4m3"), DTypeError);
  CHECK_THROWS_AS(fp8_matmul(left, left, DType::bf16, Tensor::zeros({4}, DType::f32)), DTypeError);
  CHECK_THROWS_AS(fp8_matmul(left, left, DType::f64), DTypeError);
  CHECK_THROWS_AS(fp8_quantise(Tensor::zeros({}, DType::f32), DType::f8e4m3, {true, true}), ShapeError);
}

TEST_CASE("8-bit operands with gaps in memory and scales of another kind are refused") {
  const Fp8Tensor a = fp8_quantise(Tensor::zeros({4, 8}, DType::f32), DType::f8e4m3),
                  wide = fp8_quantise(Tensor::zeros({4, 16}, DType::f32), DType::f8e4m3);
  const Fp8Operand good{a.values, a.scale}, sliced{wide.values.narrow(1, 4, 8), wide.scale},
      repeated{wide.values.narrow(0, 0, 1).narrow(1, 0, 8).expand({4, 8}), wide.scale};
  for (const Fp8Operand& gaps : {sliced, repeated}) {
    CHECK_THROWS_WITH_AS(fp8_matmul(gaps, good, DType::bf16), doctest::Contains("a dense by rows or by columns"),
                         ShapeError);
    CHECK_THROWS_WITH_AS(fp8_matmul(good, gaps, DType::bf16), doctest::Contains("b dense by rows or by columns"),
                         ShapeError);
  }
  const Tensor narrow = Tensor::zeros({4}, DType::f32).narrow(0, 0, 1),
               spread = Tensor::zeros({2, 2}, DType::f32).select(1, 0), wrong = Tensor::zeros({2}, DType::bf16);
  for (const Tensor& scale : {narrow, spread}) {
    CAPTURE(scale);
    CHECK_THROWS_WITH_AS(fp8_matmul({a.values, scale}, good, DType::bf16),
                         doctest::Contains("fp8_matmul: expected a scale of two neighbouring f32"), ShapeError);
    CHECK_THROWS_AS(fp8_matmul(good, {a.values, scale}, DType::bf16), ShapeError);
    CHECK_THROWS_AS(fp8_expand({a.values, {}, scale}, DType::f32), ShapeError);
    CHECK_THROWS_AS(fp8_quantise(Tensor::zeros({4, 8}, DType::f32), DType::f8e4m3, {}, scale), ShapeError);
  }
  for (const Tensor& scale : {wrong, Tensor{}}) {
    CAPTURE(scale);
    CHECK_THROWS_AS(fp8_matmul({a.values, scale}, good, DType::bf16), DTypeError);
    CHECK_THROWS_AS(fp8_matmul(good, {a.values, scale}, DType::bf16), DTypeError);
    CHECK_THROWS_AS(fp8_expand({a.values, {}, scale}, DType::f32), DTypeError);
  }
  CHECK_THROWS_AS(fp8_quantise(Tensor::zeros({4, 8}, DType::f32), DType::f8e4m3, {}, wrong), DTypeError);
}

TEST_CASE("an 8-bit tensor of any strides is expanded to the values it shows") {
  for (const Device device : test_devices()) {
    const Fp8Tensor q = fp8_quantise(make_tensor(random_array({6, 8}, 3), DType::f32, device), DType::f8e4m3);
    const Tensor whole = fp8_expand(q, DType::f32);
    check_same_bits("columns", fp8_expand({q.values.transpose(0, 1), {}, q.scale}, DType::f32),
                    contiguous(whole.transpose(0, 1)));
    check_same_bits("slice", fp8_expand({q.values.narrow(1, 2, 3), {}, q.scale}, DType::f32),
                    contiguous(whole.narrow(1, 2, 3)));
  }
}

TEST_CASE("a linear layer in 8 bits is a linear layer of the rounded operands, forward and backward") {
  for (const Device device : test_devices()) {
    for (const Activation activation : {Activation::none, Activation::relu, Activation::gelu_tanh}) {
      for (const DType dtype : {DType::f32, DType::bf16}) {
        CAPTURE(cat(device, " ", dtype, " ", static_cast<int>(activation)));
        const auto rounded = [](const Tensor& t, DType format) {
          return fp8_expand(fp8_quantise(t, format), t.dtype());
        };
        // The GPU's own units add in another order.
        const auto check_product = [&](const char* what, const Tensor& got, const Tensor& want) {
          device.is_cuda() ? check_close(what, got, to_array(want), dtype, tolerance(dtype))
                           : check_same_bits(what, got, want);
        };
        const auto made = [&](const Shape& shape, std::uint64_t seed) {
          return make_tensor(random_array(shape, seed), dtype, device);
        };
        const Tensor x = made({2, 8, 16}, 1), w = made({32, 16}, 2), b = made({32}, 3), dy = made({2, 8, 32}, 4);
        autograd::Variable vx(x, true), vw(w, true), vb(b, true);
        const autograd::Variable y = autograd::linear_fp8(vx, vw, vb, activation);
        autograd::backward({y}, {clone(dy)}, nullptr);

        const Tensor x8 = rounded(x, DType::f8e4m3), w8 = rounded(w, DType::f8e4m3);
        Tensor saved;
        check_product("y", y.data(), linear(x8, w8, b, activation, &saved));
        // The gradient behind the activation is what is rounded; the bias's is not.
        const LinearGradients plain = linear_backward(clone(dy), x8, w8, saved, activation);
        check_same_bits("db", vb.grad(), plain.bias);
        const Tensor one = make_tensor(Array({32, 32},
                                             [] {
                                               std::vector<double> unit(1024, 0.0);
                                               for (std::size_t i = 0; i < 32; ++i) unit[i * 33] = 1;
                                               return unit;
                                             }()),
                                       dtype, device);
        const Tensor behind = linear_backward(clone(dy), dy, one, saved, activation, {true, false, false}).x;
        const LinearGradients of_rounded =
            linear_backward(rounded(behind, DType::f8e5m2), x8, w8, {}, Activation::none, {true, true, false});
        check_product("dx", vx.grad(), of_rounded.x);
        check_product("dw", vw.grad(), of_rounded.weight);
        CHECK_FALSE(to_array(plain.weight).values == to_array(of_rounded.weight).values);
      }
    }
  }
}

TEST_CASE("a linear layer in 8 bits reads a bias with gaps in memory") {
  for (const Device device : test_devices()) {
    const Tensor x = make_tensor(random_array({5, 16}, 1), DType::f32, device),
                 weight = make_tensor(random_array({32, 16}, 2), DType::f32, device),
                 spread = make_tensor(random_array({32, 3}, 3), DType::f32, device).select(1, 1);
    const auto call = [&](const Tensor& bias) {
      return autograd::linear_fp8(autograd::Variable(x, false), autograd::Variable(weight, false),
                                  autograd::Variable(bias, false), Activation::none)
          .data();
    };
    check_same_bits("y", call(spread), call(contiguous(spread)));
  }
}

TEST_CASE("a gated feed-forward network in 8 bits has the bits of its parts") {
  for (const Device device : test_devices()) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      for (const auto& [has_bias, trains_first] :
           {std::pair(false, true), std::pair(true, true), std::pair(true, false)}) {
        CAPTURE(cat(device, " ", dtype, " ", has_bias, " ", trains_first));
        const auto results = [&, has_bias = has_bias, trains_first = trains_first](bool is_joined) {
          const auto leaf = [&](const Shape& shape, std::uint64_t seed, bool trains) {
            return autograd::Variable(make_tensor(random_array(shape, seed), dtype, device), trains);
          };
          const autograd::Variable x = leaf({2, 16, 32}, 1, trains_first), fc = leaf({96, 32}, 2, trains_first),
                                   proj = leaf({32, 48}, 3, true);
          const autograd::Variable fc_bias = has_bias ? leaf({96}, 4, trains_first) : autograd::Variable{},
                                   proj_bias = has_bias ? leaf({32}, 5, true) : autograd::Variable{};
          const autograd::Variable y =
              is_joined ? autograd::gated_feed_forward_fp8(x, {fc, fc_bias}, Activation::silu, {proj, proj_bias})
                        : autograd::linear_fp8(autograd::gated(autograd::linear_fp8(x, fc, fc_bias), Activation::silu),
                                               proj, proj_bias);
          autograd::backward({y}, {make_tensor(random_array({2, 16, 32}, 6), dtype, device)}, nullptr);
          CHECK(fc.grad().defined() == trains_first);
          Tensors all = {y.data(), proj.grad()};
          if (has_bias) all.push_back(proj_bias.grad());
          if (trains_first) all.insert(all.end(), {x.grad(), fc.grad()});
          if (trains_first && has_bias) all.push_back(fc_bias.grad());
          return all;
        };
        const Tensors joined = results(true), apart = results(false);
        for (std::size_t i = 0; i < joined.size(); ++i) check_same_bits(cat("result ", i), joined[i], apart[i]);
      }
    }
  }
}

}  // namespace castor
