// The usual training step; see model_wrapper.h.
#include "strategy/model_wrapper.h"

namespace castor::strategy {

bool ColossalAIModelWrapper::record_passes() {
  recorded_ = std::make_unique<RecordedStep>(model_);
  if (model_.optimizer() != nullptr) model_.optimizer()->record_updates();
  return true;
}

StepResult ColossalAIModelWrapper::train_step(const autograd::Batch& batch, OptimWrapper& optim_wrapper) {
  StepResult result;
  const bool is_meta = model_.device().is_meta();
  std::map<std::string, autograd::SideCopies::Fetch> reads;
  // The step waits for a GPU once, for the gradients' norm; by then the losses are there, too.
  const auto begin_read = [&](const std::string& name, const Tensor& value) {
    const Device place = model_.device().is_cuda() ? kHost : model_.device();
    if (!is_meta) reads[name] = values_.fetch(value, place);
  };
  if (recorded_ != nullptr) {
    const RecordedStep::Values values = recorded_->run(batch, [&](const autograd::Batch& here) {
      const autograd::ParsedLosses parsed = autograd::parse_losses(losses(here));
      optim_wrapper.boosted().backward(parsed.total);
      RecordedStep::Values found;
      for (const auto& [name, value] : parsed.values) found[name] = value.data();
      return found;
    });
    values_.begin();
    for (const auto& [name, value] : values) begin_read(name, value);
    result.update = optim_wrapper.end_micro_step();
  } else {
    const autograd::ParsedLosses parsed = autograd::parse_losses(losses(batch));
    if (!is_meta) values_.begin();
    for (const auto& [name, value] : parsed.values) begin_read(name, value.data());
    result.update = optim_wrapper.update_params(
        parsed.total, optim_wrapper.counts_items() ? model_.module().loss_items(batch) : autograd::LossItems{});
  }
  for (auto& [name, read] : reads) result.losses[name] = values_.finish(read).item();
  return result;
}

}  // namespace castor::strategy
