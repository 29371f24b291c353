// RMSprop's groups and states; the arithmetic is core/ops/pointwise_steps.h's.
#include "autograd/optim/rmsprop.h"

#include "autograd/optim/optimizer_config.h"
#include "autograd/optim/step_tensors.h"
#include "core/ops/pointwise_steps.h"

namespace castor::autograd {
namespace {
constexpr const char* kSquare = "square_avg";
constexpr const char* kMean = "grad_avg";
}  // namespace

RMSprop::RMSprop(const RMSpropConfig& config, std::vector<ParamGroup> groups)
    : Optimizer(std::move(groups), {{"lr", config.lr},
                                    {"alpha", config.alpha},
                                    {"eps", config.eps},
                                    {"weight_decay", config.weight_decay},
                                    {"momentum", config.momentum}}),
      config_(checked("RMSprop", config)) {}

std::vector<StateSpec> RMSprop::states(const Shape& shape) const {
  std::vector<StateSpec> specs{{kSquare, shape, DType::f32}};
  if (any_nonzero("momentum")) specs.push_back({kMomentumBuffer, shape, DType::f32});
  if (config_.centered) specs.push_back({kMean, shape, DType::f32});
  return specs;
}

void RMSprop::apply(const Range& range, const StepContext& context, const Stats&) const {
  const double alpha = value(range.group, "alpha");
  RmspropScalars scalars;
  scalars.gradient_factor = static_cast<float>(config_.maximize ? -context.gradient_scale : context.gradient_scale);
  scalars.lr = static_cast<float>(value(range.group, "lr"));
  scalars.alpha = static_cast<float>(alpha);
  scalars.alpha_rest = static_cast<float>(1 - alpha);
  scalars.momentum = static_cast<float>(value(range.group, "momentum"));
  scalars.decay = static_cast<float>(value(range.group, "weight_decay"));
  scalars.epsilon = static_cast<float>(value(range.group, "eps"));
  rmsprop_step(step_tensors(range), required_state(range, kSquare), momentum_buffer(*this, range, scalars.momentum),
               state_of(range, kMean), scalars);
}

}  // namespace castor::autograd
