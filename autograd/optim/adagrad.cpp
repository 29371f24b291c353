// Adagrad's groups and state; the arithmetic is core/ops/pointwise_steps.h's.
#include "autograd/optim/adagrad.h"

#include "autograd/optim/optimizer_config.h"
#include "autograd/optim/step_tensors.h"
#include "core/ops/pointwise_steps.h"

namespace castor::autograd {
namespace {
constexpr const char* kSum = "sum";
}

Adagrad::Adagrad(const AdagradConfig& config, std::vector<ParamGroup> groups)
    : Optimizer(std::move(groups), {{"lr", config.lr},
                                    {"lr_decay", config.lr_decay},
                                    {"weight_decay", config.weight_decay},
                                    {"eps", config.eps}}),
      config_(checked("Adagrad", config)) {}

std::vector<StateSpec> Adagrad::states(const Shape& shape) const {
  return {{kSum, shape, DType::f32, config_.initial_accumulator_value}};
}

void Adagrad::apply(const Range& range, const StepContext& context, const Stats&) const {
  const auto steps_before = static_cast<double>(context.step - 1);
  AdagradScalars scalars;
  scalars.gradient_factor = static_cast<float>(config_.maximize ? -context.gradient_scale : context.gradient_scale);
  scalars.step_size =
      static_cast<float>(value(range.group, "lr") / (1 + steps_before * value(range.group, "lr_decay")));
  scalars.decay = static_cast<float>(value(range.group, "weight_decay"));
  scalars.epsilon = static_cast<float>(value(range.group, "eps"));
  adagrad_step(step_tensors(range), required_state(range, kSum), scalars);
}

}  // namespace castor::autograd
