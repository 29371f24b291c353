// The accumulation window; see optim_wrapper.h.
#include "strategy/optim_wrapper.h"

namespace castor::strategy {

OptimWrapper::OptimWrapper(BoostedOptimizer& optimizer, const OptimWrapperOptions& options)
    : boosted_(optimizer), options_(options) {
  if (options_.accumulative_counts < 1) {
    throw ConfigError(cat("optim_wrapper: accumulative_counts must be at least 1, got ", options_.accumulative_counts),
                      "optim_wrapper.accumulative_counts");
  }
}

UpdateResult OptimWrapper::update_params(const autograd::Variable& loss, const autograd::LossItems& items) {
  boosted_.backward(loss, items);
  return end_micro_step();
}

UpdateResult OptimWrapper::end_micro_step() {
  ++inner_count_;
  const bool is_last = options_.max_micro_steps.has_value() && inner_count_ == *options_.max_micro_steps;
  if (inner_count_ % options_.accumulative_counts != 0 && !is_last) return {};
  return boosted_.step();
}

}  // namespace castor::strategy
