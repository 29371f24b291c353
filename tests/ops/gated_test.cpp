// Gated linear units against the definition in f64: both directions, with the result computed again on the way.
#include "core/ops/gated.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

#include <doctest/doctest.h>

#include "autograd/ops/gated.h"
#include "core/ops/cast.h"
#include "core/ops/fp8.h"
#include "tests/support/op_check.h"

namespace castor {
namespace {

using namespace castor::test;

constexpr std::pair<const char*, Activation> kUnits[] = {{"relu", Activation::relu},
                                                         {"gelu_tanh", Activation::gelu_tanh},
                                                         {"gelu_erf", Activation::gelu_erf},
                                                         {"silu", Activation::silu}};

double activated(Activation activation, double x) {
  switch (activation) {
    case Activation::relu:
      return std::max(x, 0.0);
    case Activation::gelu_tanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
    case Activation::gelu_erf:
      return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
    case Activation::silu:
      return x / (1 + std::exp(-x));
    case Activation::none:
      break;
  }
  return x;
}

Shape halved(Shape shape) {
  shape[shape.ndim() - 1] /= 2;
  return shape;
}

Array reference_gated(const Array& packed, Activation activation) {
  Array y(halved(packed.shape));
  const std::int64_t n = y.shape.back();
  for (std::int64_t i = 0; i < y.numel(); ++i) {
    const std::int64_t row = i / n, j = i % n;
    y[i] = activated(activation, packed[row * 2 * n + j]) * packed[row * 2 * n + n + j];
  }
  return y;
}

}  // namespace

TEST_CASE("a gated unit is the activation of the first half times the second half") {
  for (const auto& [name, activation] : kUnits) {
    OpCheck check;
    check.op = cat("gated ", name);
    check.dtypes = {DType::f32, DType::bf16, DType::f16, DType::f64};
    check.scale = 0.5;
    check.any_threads = true;
    check.run = [kind = activation](const Tensors& in) { return Tensors{gated(in[0], kind)}; };
    check.reference = [kind = activation](const Arrays& in) { return Arrays{reference_gated(in[0], kind)}; };
    check_op(check,
             unary_cases({{5, 2}, {3, 14}, {7, 64}, {2, 3, 48}, {130, 514}, {33, 2048}, {26}, {0, 8}, {4, 0}}, -4, 4));
  }
}

TEST_CASE("a gated unit's gradient matches central differences") {
  for (const auto& [name, activation] : kUnits) {
    if (activation == Activation::relu) continue;  // kinks
    GradientCheck check = variable_check(cat("gated ", name), [kind = activation](const auto& in) {
      return std::vector<autograd::Variable>{autograd::gated(in[0], kind)};
    });
    check.scale = 0.5;
    check_gradient(check, unary_cases({{5, 6}, {2, 3, 32}, {17, 130}}, -3, 3));
  }
}

TEST_CASE("relu's unit lets the gradient through where its gate is open") {
  for (const Device device : test_devices()) {
    const Tensor packed = make_tensor(Array({2, 4}, {1, -1, 3, 4, -2, 2, 5, 6}), DType::f32, device);
    const Tensor dy = make_tensor(Array({2, 2}, {10, 20, 30, 40}), DType::f32, device);
    check_close("gradient", gated_backward(dy, packed, Activation::relu), Array({2, 4}, {30, 0, 10, 0, 0, 240, 0, 80}),
                DType::f32, 0);
  }
}

TEST_CASE("the gradient gives the unit's result once more with the same bits, on rows of any length") {
  for (const Device device : test_devices()) {
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16, DType::f64}) {
      for (const Shape& shape : {Shape{3, 10}, Shape{2, 9, 512}, Shape{65, 48}}) {
        const Tensor packed = make_tensor(random_array(shape, 1, -4, 4), dtype, device);
        const Tensor dy = make_tensor(random_array(halved(shape), 2), dtype, device);
        Tensor value;
        const Tensor with = gated_backward(dy, packed, Activation::silu, {.value = &value});
        check_same_bits("the result", value, gated(packed, Activation::silu));
        check_same_bits("the gradient", with, gated_backward(dy, packed, Activation::silu));
      }
    }
  }
}

TEST_CASE("both directions find the scales in 8 bits that passes of their own would find") {
  for (const Device device : test_devices()) {
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
      for (const Shape& shape : {Shape{40, 64}, Shape{3, 14}, Shape{1000, 48}, Shape{513, 1040}, Shape{0, 8}}) {
        CAPTURE(cat(device, " ", dtype, " ", shape));
        const Tensor packed = make_tensor(random_array(shape, 6, -5, 5), dtype, device),
                     dy = make_tensor(random_array(halved(shape), 7), dtype, device);
        Tensor scale, gradient_scale;
        const Tensor y = gated(packed, Activation::silu, &scale);
        const Tensor dx = gated_backward(dy, packed, Activation::silu, {.scale = &gradient_scale});
        CHECK(scale.defined() == (y.numel() > 0));
        if (y.numel() == 0) continue;
        check_same_bits("the result's scale", scale, fp8_quantise(y, DType::f8e4m3).scale);
        check_same_bits("the gradient's scale", gradient_scale, fp8_quantise(dx, DType::f8e5m2).scale);
      }
    }
  }
}

TEST_CASE("gated units refuse odd sizes, integers, other gradients and no activation") {
  const Tensor packed = Tensor::zeros({3, 8}, DType::f32), dy = Tensor::zeros({3, 4}, DType::f32);
  CHECK_THROWS_AS(gated(Tensor::zeros({3, 7}, DType::f32), Activation::silu), ShapeError);
  CHECK_THROWS_AS(gated(Tensor::zeros({}, DType::f32), Activation::silu), ShapeError);
  CHECK_THROWS_AS(gated(Tensor::zeros({3, 8}, DType::i64), Activation::silu), DTypeError);
  CHECK_THROWS_AS(gated(packed, Activation::none), InternalError);
  CHECK_THROWS_AS(gated_backward(packed, packed, Activation::silu), ShapeError);
  CHECK_THROWS_AS(gated_backward(cast(dy, DType::f64), packed, Activation::silu), DTypeError);
  CHECK_THROWS_AS(gated_backward(dy, packed, Activation::none), InternalError);
}

}  // namespace castor
