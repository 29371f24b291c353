// Forward calls and gradients of the matmul family.
#include "autograd/ops/matmul.h"

#include "autograd/graph.h"
#include "autograd/ops/elementwise.h"
#include "core/ops/activation.h"
#include "core/ops/cast.h"
#include "core/ops/fp8_matmul.h"

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

Variable linear_fp8(const Variable& x, const Variable& weight, const Variable& bias, Activation activation) {
  const bool has_bias = bias.defined();
  const Tensor bias_data = has_bias ? bias.data() : Tensor{};
  std::vector<Variable> inputs = {x, weight};
  if (has_bias) inputs.push_back(bias);
  const bool is_recorded = needs_gradient({&x, &weight, &bias});
  const DType dtype = x.dtype();
  const Tensor x_data = x.data(), weight_data = weight.data();
  const bool keeps_x = needs_gradient({&weight});
  Tensor rows8, scale8;  // x for the weight's gradient: [k, rows] in 8 bits
  Tensor weight_scale, saved, y;
  {
    const Fp8Tensor x8 = fp8_quantise(as_rows(x_data), DType::f8e4m3, {true, keeps_x});
    const Fp8Tensor weight8 = fp8_quantise(weight_data, DType::f8e4m3);
    y = fp8_matmul({x8.values, x8.scale}, {weight8.values, weight8.scale}, dtype, bias_data);
    rows8 = x8.transposed;
    scale8 = x8.scale;
    weight_scale = weight8.scale;
  }
  Shape shape = x_data.shape();
  shape[shape.ndim() - 1] = weight_data.size(0);
  if (is_recorded && activation != Activation::none) saved = y;
  y = activate(y, activation, is_recorded).reshape(shape);
  // The weight is rounded again in backward, from the same bits: its owner has them, a copy would cost memory.
  const Shape x_shape = x_data.shape();
  return record("linear_fp8", y, std::move(inputs), [=](BackwardContext& context) -> std::vector<Tensor> {
    Tensor dy = as_rows(std::move(context.gradients[0]));
    Tensor scale;
    auto [gradient, dbias] =
        bias_backward(std::move(dy), saved, activation, has_bias && context.needs[2], {.scale = &scale});
    const Fp8Tensor gradient8 = fp8_quantise(gradient, DType::f8e5m2, {context.needs[0], context.needs[1]}, scale);
    gradient = {};
    Tensor dx, dweight;
    if (context.needs[0]) {
      const Fp8Tensor weight8 = fp8_quantise(weight_data, DType::f8e4m3, {false, true}, weight_scale);
      dx = fp8_matmul({gradient8.values, gradient8.scale}, {weight8.transposed, weight8.scale}, dtype).reshape(x_shape);
    }
    if (context.needs[1]) dweight = fp8_matmul({gradient8.transposed, gradient8.scale}, {rows8, scale8}, dtype);
    std::vector<Tensor> result = {std::move(dx), std::move(dweight)};
    if (has_bias) result.push_back(std::move(dbias));
    return result;
  });
}

Variable feed_forward(const Variable& x, const LinearParameters& fc, Activation activation,
                      const LinearParameters& proj) {
  const auto data_of = [](const Variable& variable) { return variable.defined() ? variable.data() : Tensor{}; };
  const Tensor saved_x = x.data(), fc_weight = fc.weight.data(), proj_weight = proj.weight.data();
  Tensor input;
  const Tensor hidden = castor::linear(saved_x, fc_weight, data_of(fc.bias), activation, &input);
  if (!input.defined()) throw InternalError("feed_forward: expected an activation between the two layers");
  return record("feed_forward", castor::linear(hidden, proj_weight, data_of(proj.bias)),
                {x, fc.weight, fc.bias, proj.weight, proj.bias}, [=](BackwardContext& context) -> std::vector<Tensor> {
                  const auto& needs = context.needs;
                  FeedForwardGradients gradients = castor::feed_forward_backward(
                      std::move(context.gradients[0]), saved_x, fc_weight, input, activation, proj_weight,
                      {needs[0], needs[1], needs[2], context.place(1)},
                      {false, needs[3], needs[4], context.place(3), context.place(4)});
                  return {std::move(gradients.fc.x), std::move(gradients.fc.weight), std::move(gradients.fc.bias),
                          std::move(gradients.proj.weight), std::move(gradients.proj.bias)};
                });
}

}  // namespace castor::autograd
