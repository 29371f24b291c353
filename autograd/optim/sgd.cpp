// SGD's groups and states; the arithmetic is core/ops/optim.h's.
#include "autograd/optim/sgd.h"

#include "autograd/optim/optimizer_config.h"
#include "autograd/optim/step_tensors.h"

namespace castor::autograd {

SGD::SGD(const SGDConfig& config, std::vector<ParamGroup> groups)
    : Optimizer(std::move(groups), {{"lr", config.lr},
                                    {"momentum", config.momentum},
                                    {"dampening", config.dampening},
                                    {"weight_decay", config.weight_decay}}),
      config_(checked("SGD", config)) {}

std::vector<StateSpec> SGD::states(const Shape& shape) const {
  if (!any_nonzero("momentum")) return {};
  return {{kMomentumBuffer, shape, DType::f32}};
}

void SGD::apply(const Range& range, const StepContext& context, const Stats&) const { apply_all({&range, 1}, context); }

void SGD::apply_all(std::span<const Range> ranges, const StepContext& context) const {
  std::vector<SgdStep> steps;
  for (const Range& range : ranges) steps.push_back(step_of(range, context));
  sgd_steps(steps, context.device_scale);
}

SgdStep SGD::step_of(const Range& range, const StepContext& context) const {
  SgdScalars scalars;
  scalars.gradient_factor = static_cast<float>(gradient_factor(context, config_.maximize));
  scalars.lr = static_cast<float>(value(range.group, "lr"));
  scalars.momentum = static_cast<float>(value(range.group, "momentum"));
  scalars.dampening = static_cast<float>(value(range.group, "dampening"));
  (config_.wd_after_momentum ? scalars.late_decay : scalars.weight_decay) =
      static_cast<float>(value(range.group, "weight_decay"));
  scalars.is_nesterov = config_.nesterov;
  scalars.is_first_step = context.step == 1;
  return {step_tensors(range), momentum_buffer(*this, range, scalars.momentum), scalars};
}

}  // namespace castor::autograd
