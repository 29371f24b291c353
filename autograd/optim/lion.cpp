// Lion's groups and state; the arithmetic is core/ops/pointwise_steps.h's.
#include "autograd/optim/lion.h"

#include "autograd/optim/optimizer_config.h"
#include "autograd/optim/step_tensors.h"
#include "core/ops/pointwise_steps.h"

namespace castor::autograd {

Lion::Lion(const LionConfig& config, std::vector<ParamGroup> groups)
    : Optimizer(std::move(groups), {{"lr", config.lr},
                                    {"beta1", config.betas[0]},
                                    {"beta2", config.betas[1]},
                                    {"weight_decay", config.weight_decay}}) {
  checked("Lion", config);
}

std::vector<StateSpec> Lion::states(const Shape& shape) const { return {{"exp_avg", shape, DType::f32}}; }

void Lion::apply(const Range& range, const StepContext& context, const Stats&) const {
  const double beta1 = value(range.group, "beta1"), beta2 = value(range.group, "beta2"), lr = value(range.group, "lr");
  LionScalars scalars;
  scalars.gradient_factor = static_cast<float>(context.gradient_scale);
  scalars.beta1 = static_cast<float>(beta1);
  scalars.beta1_rest = static_cast<float>(1 - beta1);
  scalars.beta2 = static_cast<float>(beta2);
  scalars.beta2_rest = static_cast<float>(1 - beta2);
  scalars.lr = static_cast<float>(lr);
  scalars.keep = static_cast<float>(1 - lr * value(range.group, "weight_decay"));
  lion_step(step_tensors(range), required_state(range, "exp_avg"), scalars);
}

}  // namespace castor::autograd
