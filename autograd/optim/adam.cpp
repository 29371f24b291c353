// Adam's and AdamW's groups and states; the arithmetic is core/ops/optim.h's.
#include "autograd/optim/adam.h"

#include <array>
#include <bit>

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

AdamScalars Adam::scalars_of(int group, const StepContext& context) const {
  const AdamOptions options{.lr = value(group, "lr"),
                            .beta1 = value(group, "beta1"),
                            .beta2 = value(group, "beta2"),
                            .epsilon = value(group, "eps"),
                            .weight_decay = value(group, "weight_decay"),
                            .is_decoupled = is_decoupled_,
                            .is_bias_corrected = config_.bias_correction};
  return adam_scalars(options, context.step, gradient_factor(context, config_.maximize));
}

std::vector<std::byte> Adam::group_scalars(int group, const StepContext& context) const {
  const auto bytes = std::bit_cast<std::array<std::byte, sizeof(AdamScalars)>>(scalars_of(group, context));
  return {bytes.begin(), bytes.end()};
}

AdamStep Adam::step_of(const Range& range, const StepContext& context) const {
  const Tensor largest = config_.amsgrad ? required_state(range, "max_exp_avg_sq") : Tensor{};
  const Tensor& all = context.device_scalars;
  const Tensor place = all.defined() ? all.select(0, range.group) : Tensor{};
  return {step_tensors(range),
          required_state(range, "exp_avg"),
          required_state(range, "exp_avg_sq"),
          largest,
          scalars_of(range.group, context),
          place};
}

}  // namespace castor::autograd
