// OptimWrapper: when an optimizer steps. Gradients of `accumulative_counts` micro-steps make one update.
//
// The remainder rule is mmengine's: the last window of a run may be shorter than the others and is divided by its own
// length. How a window's gradients become a step is the boosted optimizer's.
#pragma once

#include <cstdint>
#include <optional>

#include "strategy/boosted_optimizer.h"

namespace castor::strategy {

struct OptimWrapperOptions {
  std::int64_t accumulative_counts = 1;  ///< micro-steps in a window
  /// Of the whole run, for the remainder rule; empty when unknown (then the last window never closes early).
  std::optional<std::int64_t> max_micro_steps = {};
};

class OptimWrapper {
 public:
  /// `optimizer` must outlive it. Throws ConfigError for accumulative_counts below 1.
  OptimWrapper(BoostedOptimizer& optimizer, const OptimWrapperOptions& options);

  /// Backward of `loss` (undivided), and the step where a window ends. Throws as BoostedOptimizer::backward and step.
  UpdateResult update_params(const autograd::Variable& loss, const autograd::LossItems& items = {});

  /// The second half of it, where backward was done: the step where a window ends.
  UpdateResult end_micro_step();

  /// What it steps.
  BoostedOptimizer& boosted() { return boosted_; }
  autograd::Optimizer& optimizer() { return boosted_.optimizer(); }
  autograd::Stepper& stepper() { return boosted_.stepper(); }
  Sharding& sharding() { return boosted_.sharding(); }
  autograd::GradScaler* grad_scaler() { return boosted_.grad_scaler(); }
  std::int64_t accumulative_counts() const { return options_.accumulative_counts; }
  bool counts_items() const { return boosted_.counts_items(); }
  /// Micro-steps done so far; set after a resume.
  std::int64_t inner_count() const { return inner_count_; }
  /// Continues after `count` micro-steps, of which the last `window_position` wait in an open window.
  void set_inner_count(std::int64_t count, std::int64_t window_position = 0) {
    inner_count_ = count;
    boosted_.set_window_position(window_position);
  }
  /// Position within the accumulation window of the next micro-step, from 0.
  std::int64_t window_position() const { return boosted_.window_position(); }

 private:
  BoostedOptimizer& boosted_;
  OptimWrapperOptions options_;
  std::int64_t inner_count_ = 0;
};

}  // namespace castor::strategy
