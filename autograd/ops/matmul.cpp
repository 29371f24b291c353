// Forward calls and gradients of the matmul family.
#include "autograd/ops/matmul.h"

#include "autograd/graph.h"
#include "autograd/ops/elementwise.h"
#include "core/ops/activation.h"
#include "core/ops/cast.h"
#include "core/ops/fp8.h"

namespace castor::autograd {
namespace {

/// All axes but the last as one.
Tensor as_rows(const Tensor& x) { return castor::reshape(x, {x.numel() / x.shape().back(), x.shape().back()}); }

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
    const LinearNeeds needs{context.needs[0], context.needs[1], has_bias && context.needs[2]};
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
  const Fp8Tensor x8 = fp8_quantise(x.data(), DType::f8e4m3), weight8 = fp8_quantise(weight.data(), DType::f8e4m3);
  Tensor saved;
  Tensor y = castor::linear(fp8_expand(x8, dtype), fp8_expand(weight8, weight.dtype()), bias_data, activation,
                            is_recorded ? &saved : nullptr);
  // The weight is rounded again in backward, from the same bits: its owner has them, a copy would cost memory.
  const Tensor weight_data = weight.data();
  return record("linear_fp8", y, std::move(inputs), [=](BackwardContext& context) -> std::vector<Tensor> {
    Tensor dy = as_rows(std::move(context.gradients[0]));
    const Tensor before = saved.defined() ? as_rows(saved) : Tensor{};
    auto [gradient, dbias] = bias_backward(std::move(dy), before, activation, has_bias && context.needs[2]);
    gradient = fp8_expand(fp8_quantise(gradient, DType::f8e5m2), gradient.dtype());
    Tensor dx, dweight;
    if (context.needs[0]) {
      const Fp8Tensor again = fp8_quantise(weight_data, DType::f8e4m3);
      dx = castor::matmul(gradient, fp8_expand(again, dtype)).reshape(x8.values.shape());
    }
    if (context.needs[1]) dweight = castor::matmul(gradient.transpose(0, 1), as_rows(fp8_expand(x8, dtype)));
    std::vector<Tensor> result = {std::move(dx), std::move(dweight)};
    if (has_bias) result.push_back(std::move(dbias));
    return result;
  });
}

}  // namespace castor::autograd
