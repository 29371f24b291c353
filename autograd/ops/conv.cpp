// Forward call and gradients of the convolution.
#include "autograd/ops/conv.h"

#include "autograd/graph.h"
#include "core/ops/channels_last.h"

namespace castor::autograd {

Variable conv2d(const Variable& x, const Variable& weight, const Variable& bias, const ConvGeometry& geometry,
                Activation activation) {
  const bool has_bias = bias.defined();
  const Tensor bias_data = has_bias ? bias.data() : Tensor{};
  std::vector<Variable> inputs = {x, weight};
  if (has_bias) inputs.push_back(bias);
  // The layout that both directions want is made once, and is what backward keeps.
  const Tensor image = x.ndim() == 4 ? channels_last(x.data()) : x.data();
  Tensor saved;
  const bool is_recorded = needs_gradient({&x, &weight, &bias});
  Tensor y = castor::conv2d(image, weight.data(), bias_data, geometry, activation, is_recorded ? &saved : nullptr);
  Tensor saved_weight = weight.data();
  return record("conv2d", y, std::move(inputs), [=](BackwardContext& context) -> std::vector<Tensor> {
    const ConvNeeds needs{context.needs[0], context.needs[1], has_bias && context.needs[2]};
    LinearGradients gradients = castor::conv2d_backward(std::move(context.gradients[0]), image, saved_weight, saved,
                                                        geometry, activation, needs);
    std::vector<Tensor> result = {std::move(gradients.x), std::move(gradients.weight)};
    if (has_bias) result.push_back(std::move(gradients.bias));
    return result;
  });
}

}  // namespace castor::autograd
