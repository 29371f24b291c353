// Adam's and AdamW's groups and states; the arithmetic is core/ops/optim.h's.
#include "autograd/optim/adam.h"

#include "autograd/optim/optimizer_config.h"
#include "autograd/optim/step_tensors.h"

namespace castor::autograd {

Adam::Adam(const char* type, const AdamConfig& config, std::vector<ParamGroup> groups, bool decoupled)
    : Optimizer(std::move(groups), {{"lr", config.lr},
                                    {"beta1", config.betas[0]},
                                    {"beta2", config.betas[1]},
                                    {"eps", config.eps},
                                    {"weight_decay", config.weight_decay}}),
      config_(checked(type, config)),
      is_decoupled_(decoupled) {}

Adam::Adam(const AdamConfig& config, std::vector<ParamGroup> groups) : Adam("Adam", config, std::move(groups), false) {}

AdamW::AdamW(const AdamWConfig& config, std::vector<ParamGroup> groups)
    : Adam("AdamW", config, std::move(groups), true) {}

std::unique_ptr<Optimizer> make_hybrid_adam(const HybridAdamConfig& config) {
  if (!config.adamw_mode) return std::make_unique<Adam>(config);
  AdamWConfig decoupled;
  static_cast<AdamConfig&>(decoupled) = config;
  return std::make_unique<AdamW>(decoupled);
}

std::vector<StateSpec> Adam::states(const Shape& shape) const {
  std::vector<StateSpec> specs{{"exp_avg", shape, DType::f32}, {"exp_avg_sq", shape, DType::f32}};
  if (config_.amsgrad) specs.push_back({"max_exp_avg_sq", shape, DType::f32});
  return specs;
}

void Adam::apply(const Range& range, const StepContext& context, const Stats&) const {
  apply_all({&range, 1}, context);
}

void Adam::apply_all(std::span<const Range> ranges, const StepContext& context) const {
  std::vector<AdamStep> steps;
  for (const Range& range : ranges) steps.push_back(step_of(range, context));
  adam_steps(steps, context.device_scale);
}

AdamStep Adam::step_of(const Range& range, const StepContext& context) const {
  const AdamOptions options{.lr = value(range.group, "lr"),
                            .beta1 = value(range.group, "beta1"),
                            .beta2 = value(range.group, "beta2"),
                            .epsilon = value(range.group, "eps"),
                            .weight_decay = value(range.group, "weight_decay"),
                            .is_decoupled = is_decoupled_,
                            .is_bias_corrected = config_.bias_correction};
  const Tensor largest = config_.amsgrad ? required_state(range, "max_exp_avg_sq") : Tensor{};
  return {step_tensors(range), required_state(range, "exp_avg"), required_state(range, "exp_avg_sq"), largest,
          adam_scalars(options, context.step, gradient_factor(context, config_.maximize))};
}

}  // namespace castor::autograd
