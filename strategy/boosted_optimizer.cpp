// Backward passes into a window, and the window into a step; see boosted_optimizer.h.
#include "strategy/boosted_optimizer.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "autograd/graph.h"
#include "autograd/optim/clip.h"
#include "core/base/log.h"
#include "core/device/trace.h"
#include "core/ops/cast.h"
#include "core/ops/elementwise.h"
#include "core/ops/optim.h"

namespace castor::strategy {
namespace {

// The name of the first part whose gradient is not finite; empty if all are.
std::string first_not_finite(const std::vector<autograd::Part>& parts) {
  for (const autograd::Part& part : parts) {
    if (part.gradient.defined() && !std::isfinite(sum_squares(part.gradient))) return part.variable.name();
  }
  return {};
}

// A plugin cuts parameters and knows nothing of groups.
std::vector<autograd::Part> in_groups(std::vector<autograd::Part> parts,
                                      const std::map<const autograd::VariableState*, int>& group_of) {
  for (autograd::Part& part : parts) {
    const auto found = group_of.find(part.variable.identity());
    if (found != group_of.end()) part.group = found->second;
  }
  return parts;
}

}  // namespace

BoostedOptimizer::BoostedOptimizer(std::unique_ptr<autograd::Optimizer> optimizer, std::unique_ptr<Sharding> sharding,
                                   const BoostedOptimizerOptions& options)
    : optimizer_(std::move(optimizer)),
      sharding_(std::move(sharding)),
      options_(options),
      stepper_(*optimizer_, in_groups(sharding_->parts(), options.group_of),
               {.keeps_masters = sharding_->keeps_masters(), .may_be_late = sharding_->can_finish_late()}) {
  sharding_->set_finish_parts([this](std::size_t first, std::size_t count) { stepper_.finish(first, count); });
  if (sharding_->reducer() != nullptr) stepper_.set_reducer(*sharding_->reducer());
  if (options_.grad_scaler) scaler_.emplace(*options_.grad_scaler);
}

double BoostedOptimizer::item_weight(const autograd::LossItems& items) {
  if (item_unit_ == 0) {
    const auto all = static_cast<std::uint64_t>(std::max<std::int64_t>(items.all, 1));
    const auto unit = static_cast<std::int64_t>(std::bit_ceil(all));
    item_unit_ = options_.largest_of_ranks ? options_.largest_of_ranks(unit) : unit;
  }
  window_items_ += items.counted;
  return static_cast<double>(items.counted) / static_cast<double>(item_unit_);
}

// What the mean of weighted micro-batches is short of the mean over items.
double BoostedOptimizer::items_factor(std::int64_t micro_batches) {
  const std::int64_t own = std::exchange(window_items_, 0);
  const std::int64_t all = options_.sum_over_ranks ? options_.sum_over_ranks(own) : own;
  return static_cast<double>(micro_batches) * static_cast<double>(item_unit_) /
         static_cast<double>(std::max<std::int64_t>(all, 1));
}

void BoostedOptimizer::backward(const autograd::Variable& loss, const autograd::LossItems& items) {
  sharding_->begin_micro_step(window_count_);
  autograd::BackwardOptions backward;
  backward.sink = sharding_.get();
  const double weight = (scaler_ ? scaler_->scale() : 1.0) * (options_.counts_items ? item_weight(items) : 1.0);
  if (scaler_ || options_.counts_items) backward.gradient = full({}, weight, loss.dtype(), loss.device());
  const TraceSpan span("backward", "phase", loss.device());
  {
    std::optional<autograd::ResultObserverScope> watching;
    if (autograd::ResultObserver* watch = options_.watch ? options_.watch() : nullptr) watching.emplace(*watch);
    autograd::backward(loss, backward);
  }
  sharding_->end_micro_step();
  backward_was_run();
}

void BoostedOptimizer::backward_was_run() {
  ++window_count_;
  is_sent_ = !is_deferred_;
}

void BoostedOptimizer::set_deferred(bool is_deferred) {
  if (is_deferred == is_deferred_) return;
  sharding_->set_deferred(is_deferred);
  is_deferred_ = is_deferred;
  if (options_.world_size == 1 || std::exchange(has_warned_, true)) return;
  logger().warning(
      "no_sync: each rank adds its micro-batches before they meet those of others, so results depend in their last "
      "bits on how a global batch is split over ranks");
}

UpdateResult BoostedOptimizer::step() {
  if (window_count_ == 0) throw InternalError("step: nothing was added since the last one; call backward first");
  if (!is_sent_) {
    throw InternalError(
        "step: the last backward was inside no_sync, so its gradients are on this rank only; do a window's last "
        "backward outside of it");
  }
  const std::int64_t micro_steps = window_count_;
  const TraceSpan span("update", "phase", stepper_.parts().empty() ? kCpu : stepper_.parts().front().variable.device());
  const UpdateResult result = step_window();
  stepper_.zero_grad();
  if (options_.window_ended) options_.window_ended(micro_steps);
  return result;
}

UpdateResult BoostedOptimizer::step_window() {
  UpdateResult result;
  result.did_update = true;
  const std::int64_t micro_batches = std::exchange(window_count_, 0) * options_.world_size;
  sharding_->finish_window(micro_batches, stepper_.parts());
  const std::optional<ClipConfig>& clip = options_.clip;
  const double loss_scale = scaler_ ? scaler_->scale() : 1.0;
  const double scale = options_.counts_items ? loss_scale / items_factor(micro_batches) : loss_scale;
  const bool clips_values = clip && clip->type == "value";
  squares_scale_ = scale;
  if (has_norms() && !scaler_ && !clips_values) {
    squares_ = stepper_.step_limited(scale, clip ? clip->max_norm : std::nullopt);
    result.grad_norm = autograd::Stepper::norm_of(squares_) / scale;
    sharding_->publish_weights();
    return result;
  }
  double factor = 1.0 / scale;
  if (has_norms()) {
    squares_ = stepper_.gradient_squares();
    const double norm = autograd::Stepper::norm_of(squares_) / scale;
    result.grad_norm = norm;
    if (scaler_) {
      result.loss_scale = loss_scale;
      result.was_skipped = !std::isfinite(norm);
      scaler_->update(result.was_skipped);
      if (result.was_skipped) {
        check_skips();
        if (sharding_->overwrites_weights()) stepper_.restore_weights();
        sharding_->publish_weights();
        return result;
      }
    }
    if (clip && clip->type == "norm") factor *= autograd::clip_factor(norm, *clip->max_norm);
  }
  if (clips_values) {
    for (const autograd::Part& part : stepper_.parts()) {
      if (!part.gradient.defined()) continue;
      unary_inplace(UnaryOp::clamp, part.gradient, -*clip->clip_value * scale, *clip->clip_value * scale);
    }
  }
  stepper_.step(factor);
  sharding_->publish_weights();
  return result;
}

std::map<std::string, double> BoostedOptimizer::gradient_norms() const {
  std::map<std::string, double> norms;
  if (squares_.empty()) return norms;
  const std::vector<std::string> names = stepper_.gradient_names();
  for (std::size_t i = 0; i < names.size(); ++i) norms[names[i]] = std::sqrt(squares_.at(i)) / squares_scale_;
  return norms;
}

void BoostedOptimizer::check_skips() const {
  const autograd::GradScalerState& state = scaler_->state();
  if (state.skipped_in_row == 1)
    logger().info("fp16: a step was skipped, its gradients overflowed; the loss scale is ", state.scale);
  if (state.skipped_in_row < scaler_->config().max_skips) return;
  std::string found = options_.find_not_finite ? options_.find_not_finite() : "";
  if (found.empty()) {
    const std::string name = first_not_finite(stepper_.parts());
    found = name.empty() ? "that of another rank's part" : cat("that of '", name, "'");
  }
  throw autograd::NumericsError(cat("fp16: ", state.skipped_in_row,
                                    " steps in a row were skipped because gradients are not finite, and a loss scale "
                                    "of ",
                                    state.scale, " does not help. The first such value after step ",
                                    stepper_.step_count(), " is ", found,
                                    "; look for an infinite or NaN loss, lower the learning rate, or train in bf16"));
}

}  // namespace castor::strategy
