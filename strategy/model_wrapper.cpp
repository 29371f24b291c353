// The usual training step; see model_wrapper.h.
#include "strategy/model_wrapper.h"

namespace castor::strategy {

StepResult ColossalAIModelWrapper::train_step(const autograd::Batch& batch, OptimWrapper& optim_wrapper) {
  const autograd::ParsedLosses parsed = autograd::parse_losses(losses(batch));
  StepResult result;
  const bool is_meta = model_.device().is_meta();
  // The step waits for a GPU once, for the gradients' norm; by then the losses are there, too.
  std::map<std::string, autograd::SideCopies::Fetch> reads;
  if (!is_meta) {
    values_.begin();
    const Device place = model_.device().is_cuda() ? kHost : model_.device();
    for (const auto& [name, value] : parsed.values) reads[name] = values_.fetch(value.data(), place);
  }
  result.update = optim_wrapper.update_params(
      parsed.total, optim_wrapper.counts_items() ? model_.module().loss_items(batch) : autograd::LossItems{});
  for (auto& [name, read] : reads) result.losses[name] = values_.finish(read).item();
  return result;
}

}  // namespace castor::strategy
