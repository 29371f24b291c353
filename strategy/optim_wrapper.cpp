// The accumulation window; see optim_wrapper.h.
#include "strategy/optim_wrapper.h"

#include <utility>

#include "autograd/graph.h"
#include "autograd/optim/clip.h"
#include "core/ops/elementwise.h"

namespace castor::strategy {

OptimWrapper::OptimWrapper(std::unique_ptr<autograd::Optimizer> optimizer,
                           std::vector<autograd::LocalStepper::Parameter> parameters, std::int64_t accumulative_counts,
                           std::optional<ClipConfig> clip, std::optional<std::int64_t> max_micro_steps)
    : optimizer_(std::move(optimizer)),
      parameters_(std::move(parameters)),
      stepper_(*optimizer_, parameters_),
      counts_(accumulative_counts),
      clip_(std::move(clip)),
      max_micro_steps_(max_micro_steps) {
  if (counts_ < 1)
    throw ConfigError(cat("optim_wrapper: accumulative_counts must be at least 1, got ", counts_),
                      "optim_wrapper.accumulative_counts");
}

std::vector<autograd::Variable> OptimWrapper::variables() const {
  std::vector<autograd::Variable> list;
  for (const auto& parameter : parameters_) list.push_back(parameter.variable);
  return list;
}

void OptimWrapper::average(std::int64_t micro_steps) {
  if (exchange_ != nullptr) return exchange_->finish_window(micro_steps * world_size_);
  if (micro_steps == 1) return;
  for (const auto& parameter : parameters_) {
    if (parameter.variable.grad().defined()) {
      unary_inplace(UnaryOp::affine, parameter.variable.grad(), 1.0 / static_cast<double>(micro_steps), 0);
    }
  }
}

UpdateResult OptimWrapper::update_params(const autograd::Variable& loss) {
  if (exchange_ != nullptr) exchange_->begin_micro_step(window_count_);
  autograd::BackwardOptions options;
  options.sink = exchange_;
  autograd::backward(loss, options);
  if (exchange_ != nullptr) exchange_->end_micro_step();
  ++inner_count_;
  ++window_count_;
  const bool is_last = max_micro_steps_.has_value() && inner_count_ == *max_micro_steps_;
  if (inner_count_ % counts_ != 0 && !is_last) return {};

  average(std::exchange(window_count_, 0));
  UpdateResult result{true, {}};
  double factor = 1.0;
  if (clip_ && clip_->type == "value") autograd::clip_grad_value(variables(), *clip_->clip_value);
  if (clip_ && clip_->type == "norm") {
    const double norm = stepper_.gradient_norm();
    factor = autograd::clip_factor(norm, *clip_->max_norm);
    result.grad_norm = norm;
  }
  stepper_.step(factor);
  stepper_.zero_grad();
  return result;
}

}  // namespace castor::strategy
