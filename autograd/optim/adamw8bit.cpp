// AdamW8bit's groups and states; the arithmetic is core/ops/adam8bit.h's. Delicate: a state in codes has another name
// than one in f32, so that neither is ever loaded as the other.
#include "autograd/optim/adamw8bit.h"

#include "autograd/optim/optimizer_config.h"
#include "autograd/optim/step_tensors.h"
#include "core/ops/adam8bit.h"
#include "core/ops/dynamic_code.h"

namespace castor::autograd {

AdamW8bit::AdamW8bit(const AdamW8bitConfig& config, std::vector<ParamGroup> groups)
    : Optimizer(std::move(groups), {{"lr", config.lr},
                                    {"beta1", config.betas[0]},
                                    {"beta2", config.betas[1]},
                                    {"eps", config.eps},
                                    {"weight_decay", config.weight_decay}}),
      config_(checked("AdamW8bit", config)) {}

std::vector<StateSpec> AdamW8bit::states(const Shape& shape) const {
  if (!has_codes(shape)) return {{"exp_avg", shape, DType::f32}, {"exp_avg_sq", shape, DType::f32}};
  return {{"exp_avg_code", shape, DType::u8, kSignedZero},
          {"exp_avg_sq_code", shape, DType::u8},
          {"exp_avg_scale", block_shape(shape), DType::f32, 0, true},
          {"exp_avg_sq_scale", block_shape(shape), DType::f32, 0, true}};
}

void AdamW8bit::apply(const Range& range, const StepContext& context, const Stats&) const {
  const AdamOptions options{.lr = value(range.group, "lr"),
                            .beta1 = value(range.group, "beta1"),
                            .beta2 = value(range.group, "beta2"),
                            .epsilon = value(range.group, "eps"),
                            .weight_decay = value(range.group, "weight_decay")};
  const AdamScalars scalars = adam_scalars(options, context.step, context.gradient_scale);
  if (!has_codes(range.shape)) {
    return adam_step(step_tensors(range), required_state(range, "exp_avg"), required_state(range, "exp_avg_sq"), {},
                     scalars);
  }
  adam8bit_step(step_tensors(range),
                {required_state(range, "exp_avg_code"), required_state(range, "exp_avg_sq_code"),
                 required_state(range, "exp_avg_scale"), required_state(range, "exp_avg_sq_scale")},
                scalars);
}

}  // namespace castor::autograd
