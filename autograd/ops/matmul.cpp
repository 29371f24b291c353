// Forward calls and gradients of the matmul family.
#include "autograd/ops/matmul.h"

#include "autograd/graph.h"
#include "autograd/ops/elementwise.h"
#include "core/ops/activation.h"
#include "core/ops/cast.h"
#include "core/ops/fp8_matmul.h"
#include "core/ops/gated.h"

namespace castor::autograd {
namespace {

/// All axes but the last as one.
Tensor as_rows(const Tensor& x) {
  const std::int64_t rows = Shape(std::span(x.shape().begin(), x.shape().end() - 1)).numel();
  return castor::reshape(x, {rows, x.shape().back()});
}

}  // namespace

Variable matmul(const Variable& a, const Variable& b) {
  Tensor saved_a = a.data(), saved_b = b.data();
  return record("matmul", castor::matmul(saved_a, saved_b), {a, b},
                [=](BackwardContext& context) -> std::vector<Tensor> {
                  const Tensor& dc = context.gradients[0];
                  Tensor da, db;
                  if (context.needs[0]) da = sum_to(castor::matmul(dc, saved_b.transpose(-2, -1)), saved_a.shape());
                  // A single b met every row of a: its gradient is one product over all rows, not a sum of products.
                  if (context.needs[1]) {
                    db = saved_b.ndim() == 2 && saved_a.ndim() > 2 && dc.numel() != 0 && saved_a.numel() != 0
                             ? castor::matmul(as_rows(saved_a).transpose(0, 1), as_rows(dc))
                             : sum_to(castor::matmul(saved_a.transpose(-2, -1), dc), saved_b.shape());
                  }
                  return {da, db};
                });
}

Variable linear(const Variable& x, const Variable& weight, const Variable& bias, Activation activation) {
  const bool has_bias = bias.defined();
  const Tensor bias_data = has_bias ? bias.data() : Tensor{};
  std::vector<Variable> inputs = {x, weight};
  if (has_bias) inputs.push_back(bias);
  const bool is_recorded = needs_gradient({&x, &weight, &bias});
  Tensor saved;
  Tensor y = castor::linear(x.data(), weight.data(), bias_data, activation, is_recorded ? &saved : nullptr);
  Tensor saved_x = x.data(), saved_weight = weight.data();
  return record("linear", y, std::move(inputs), [=](BackwardContext& context) -> std::vector<Tensor> {
    const LinearNeeds needs{context.needs[0], context.needs[1], has_bias && context.needs[2], context.place(1),
                            has_bias ? context.place(2) : Tensor{}};
    LinearGradients gradients =
        castor::linear_backward(std::move(context.gradients[0]), saved_x, saved_weight, saved, activation, needs);
    std::vector<Tensor> result = {std::move(gradients.x), std::move(gradients.weight)};
    if (has_bias) result.push_back(std::move(gradients.bias));
    return result;
  });
}

namespace {

/// What backward needs of a layer that multiplied in 8 bits. The weight is rounded again there, from the same bits: its
/// owner has them, a copy would cost memory.
struct Fp8Layer {
  Tensor weight, weight_scale;
  Tensor rows, rows_scale;  ///< the input for the weight's gradient: [k, rows] in 8 bits
};

/// x weight^T + bias for the rows of an input in 8 bits, rounded to `dtype`.
Tensor forward_fp8(const Fp8Tensor& x, const Tensor& weight, const Tensor& bias, DType dtype, Fp8Layer& layer) {
  const Fp8Tensor weight8 = fp8_quantise(weight, DType::f8e4m3);
  layer = {weight, weight8.scale, x.transposed, x.scale};
  return fp8_matmul({x.values, x.scale}, {weight8.values, weight8.scale}, dtype, bias);
}

/// Gradients of the input's rows and of the weight; undefined where not asked for.
///   dy     [rows, n], handed over
///   scale  dy's in 8 bits, where it is known
std::pair<Tensor, Tensor> backward_fp8(Tensor dy, const Tensor& scale, const Fp8Layer& layer, bool needs_x,
                                       bool needs_weight) {
  const DType dtype = dy.dtype();
  const Fp8Tensor dy8 = fp8_quantise(dy, DType::f8e5m2, {needs_x, needs_weight}, scale);
  dy = {};
  Tensor dx, dweight;
  if (needs_x) {
    const Fp8Tensor weight8 = fp8_quantise(layer.weight, DType::f8e4m3, {false, true}, layer.weight_scale);
    dx = fp8_matmul({dy8.values, dy8.scale}, {weight8.transposed, weight8.scale}, dtype);
  }
  if (needs_weight) dweight = fp8_matmul({dy8.transposed, dy8.scale}, {layer.rows, layer.rows_scale}, dtype);
  return {dx, dweight};
}

Tensor data_of(const Variable& variable) { return variable.defined() ? variable.data() : Tensor{}; }

Shape with_last(Shape shape, std::int64_t size) {
  shape[shape.ndim() - 1] = size;
  return shape;
}

}  // namespace

Variable linear_fp8(const Variable& x, const Variable& weight, const Variable& bias, Activation activation) {
  const bool has_bias = bias.defined();
  std::vector<Variable> inputs = {x, weight};
  if (has_bias) inputs.push_back(bias);
  const bool is_recorded = needs_gradient({&x, &weight, &bias});
  const Shape x_shape = x.shape();
  Fp8Layer layer;
  Tensor y = forward_fp8(fp8_quantise(as_rows(x.data()), DType::f8e4m3, {true, needs_gradient({&weight})}),
                         weight.data(), data_of(bias), x.dtype(), layer);
  const Tensor saved = is_recorded && activation != Activation::none ? y : Tensor{};
  y = activate(y, activation, is_recorded).reshape(with_last(x_shape, weight.size(0)));
  return record("linear_fp8", y, std::move(inputs), [=](BackwardContext& context) -> std::vector<Tensor> {
    Tensor scale;
    auto [gradient, dbias] = bias_backward(as_rows(std::move(context.gradients[0])), saved, activation,
                                           has_bias && context.needs[2], {.scale = &scale});
    auto [dx, dweight] = backward_fp8(std::move(gradient), scale, layer, context.needs[0], context.needs[1]);
    std::vector<Tensor> result = {dx.defined() ? dx.reshape(x_shape) : Tensor{}, std::move(dweight)};
    if (has_bias) result.push_back(std::move(dbias));
    return result;
  });
}

Variable gated_feed_forward_fp8(const Variable& x, const LinearParameters& fc, Activation activation,
                                const LinearParameters& proj) {
  const Shape x_shape = x.shape();
  const DType dtype = x.dtype();
  Fp8Layer first, second;
  const Tensor packed =
      forward_fp8(fp8_quantise(as_rows(x.data()), DType::f8e4m3, {true, needs_gradient({&fc.weight})}),
                  fc.weight.data(), data_of(fc.bias), dtype, first);
  Tensor y;
  {
    Tensor scale;
    const Tensor value = castor::gated(packed, activation, &scale);
    y = forward_fp8(fp8_quantise(value, DType::f8e4m3, {true, needs_gradient({&proj.weight})}, scale),
                    proj.weight.data(), data_of(proj.bias), dtype, second);
  }
  return record("gated_feed_forward_fp8", y.reshape(with_last(x_shape, proj.weight.size(0))),
                {x, fc.weight, fc.bias, proj.weight, proj.bias}, [=](BackwardContext& context) -> std::vector<Tensor> {
                  const auto& needs = context.needs;
                  Tensor scale;
                  auto [dy, proj_bias] = bias_backward(as_rows(std::move(context.gradients[0])), {}, Activation::none,
                                                       needs[4], {.scale = &scale});
                  const bool needs_hidden = needs[0] || needs[1] || needs[2];
                  auto [dvalue, dproj] = backward_fp8(std::move(dy), scale, second, needs_hidden, needs[3]);
                  if (!needs_hidden) return {{}, {}, {}, std::move(dproj), std::move(proj_bias)};
                  Tensor dpacked = castor::gated_backward(dvalue, packed, activation, {.scale = &scale});
                  dvalue = {};
                  auto [gradient, fc_bias] = bias_backward(std::move(dpacked), {}, Activation::none, needs[2]);
                  auto [dx, dfc] = backward_fp8(std::move(gradient), scale, first, needs[0], needs[1]);
                  return {dx.defined() ? dx.reshape(x_shape) : Tensor{}, std::move(dfc), std::move(fc_bias),
                          std::move(dproj), std::move(proj_bias)};
                });
}

Variable feed_forward(const Variable& x, const LinearParameters& fc, HiddenActivation hidden,
                      const LinearParameters& proj) {
  const Tensor saved_x = x.data(), fc_weight = fc.weight.data(), proj_weight = proj.weight.data();
  if (hidden.activation == Activation::none)
    throw InternalError("feed_forward: expected an activation between the two layers");
  Tensor input, value;
  if (hidden.is_gated) {
    input = castor::linear(saved_x, fc_weight, data_of(fc.bias));
    value = castor::gated(input, hidden.activation);
    input = as_rows(input);
  } else {
    value = castor::linear(saved_x, fc_weight, data_of(fc.bias), hidden.activation, &input);
  }
  return record("feed_forward", castor::linear(value, proj_weight, data_of(proj.bias)),
                {x, fc.weight, fc.bias, proj.weight, proj.bias}, [=](BackwardContext& context) -> std::vector<Tensor> {
                  const auto& needs = context.needs;
                  FeedForwardGradients gradients =
                      castor::feed_forward_backward(std::move(context.gradients[0]), saved_x, fc_weight, input, hidden,
                                                    proj_weight, {needs[0], needs[1], needs[2], context.place(1)},
                                                    {false, needs[3], needs[4], context.place(3), context.place(4)});
                  return {std::move(gradients.fc.x), std::move(gradients.fc.weight), std::move(gradients.fc.bias),
                          std::move(gradients.proj.weight), std::move(gradients.proj.bias)};
                });
}

}  // namespace castor::autograd
