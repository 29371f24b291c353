// Forward calls and gradients of the matmul family.
#include "autograd/ops/matmul.h"

#include "autograd/graph.h"
#include "autograd/ops/elementwise.h"
#include "core/ops/cast.h"

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

}  // namespace castor::autograd
