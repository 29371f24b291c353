// The usual training step; see model_wrapper.h.
#include "strategy/model_wrapper.h"

namespace castor::strategy {

StepResult ColossalAIModelWrapper::train_step(const autograd::Batch& batch, OptimWrapper& optim_wrapper) {
  const autograd::ParsedLosses parsed = autograd::parse_losses(losses(batch));
  StepResult result;
  result.update = optim_wrapper.update_params(
      parsed.total, optim_wrapper.counts_items() ? model_.module().loss_items(batch) : autograd::LossItems{});
  if (model_.device().is_meta()) return result;
  for (const auto& [name, value] : parsed.values) result.losses[name] = value.data().item();
  return result;
}

}  // namespace castor::strategy
