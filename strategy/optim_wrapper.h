// When an optimizer steps: gradients of `accumulative_counts` micro-steps are summed, then divided once by their
// number, clipped and applied. The sum comes first and the division once, so that the result does not depend on how a
// global batch was cut.
//
// The remainder rule is mmengine's: the last window of a run may be shorter than the others and is divided by its own
// length.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "autograd/optim/optimizer.h"
#include "strategy/config/field.h"
#include "strategy/gradient_exchange.h"

namespace castor::strategy {

/// Limits gradients before a step.
struct ClipConfig {
  std::string type = "norm";
  std::optional<double> max_norm;  ///< norm: gradients are scaled so that their L2 norm is at most this
  double norm_type = 2.0;
  std::optional<double> clip_value;  ///< value: each element is limited to [-clip_value, clip_value]
};

template <class V>
void describe(V& v, ClipConfig& c) {
  v.field("type", c.type, "norm scales all gradients together; value limits each element", one_of({"norm", "value"}));
  v.field("max_norm", c.max_norm, "type norm: largest L2 norm of all gradients", more_than(0));
  v.field("norm_type", c.norm_type, "type norm: the norm's order; only 2", at_least(2), at_most(2));
  v.field("clip_value", c.clip_value, "type value: largest magnitude of an element", more_than(0));
  v.check(
      "max_norm", [&] { return c.type != "norm" || c.max_norm.has_value(); }, "is needed by type norm");
  v.check(
      "clip_value", [&] { return c.type != "value" || c.clip_value.has_value(); }, "is needed by type value");
}

/// What one update did.
struct UpdateResult {
  bool did_update = false;  ///< false inside an accumulation window
  std::optional<double> grad_norm;
};

class OptimWrapper {
 public:
  /// max_micro_steps: of the whole run, for the remainder rule; empty when unknown (then the last window never closes
  /// early).
  OptimWrapper(std::unique_ptr<autograd::Optimizer> optimizer,
               std::vector<autograd::LocalStepper::Parameter> parameters, std::int64_t accumulative_counts,
               std::optional<ClipConfig> clip, std::optional<std::int64_t> max_micro_steps);
  /// From now on gradients of `world_size` ranks meet in `exchange`, which must outlive this.
  void set_exchange(GradientExchange& exchange, std::int64_t world_size) {
    exchange_ = &exchange;
    world_size_ = world_size;
  }

  /// Backward of `loss` (undivided), and the step where a window ends.
  UpdateResult update_params(const autograd::Variable& loss);

  autograd::Optimizer& optimizer() { return *optimizer_; }
  const autograd::LocalStepper& stepper() const { return stepper_; }
  autograd::LocalStepper& stepper() { return stepper_; }
  std::int64_t accumulative_counts() const { return counts_; }
  /// Micro-steps done so far; set after a resume.
  std::int64_t inner_count() const { return inner_count_; }
  /// Continues after `count` micro-steps, of which the last `window_position` wait in an open window.
  void set_inner_count(std::int64_t count, std::int64_t window_position = 0) {
    inner_count_ = count;
    window_count_ = window_position;
  }
  /// Position within the accumulation window of the next micro-step, from 0.
  std::int64_t window_position() const { return window_count_; }

 private:
  std::vector<autograd::Variable> variables() const;
  void average(std::int64_t micro_steps);

  std::unique_ptr<autograd::Optimizer> optimizer_;
  std::vector<autograd::LocalStepper::Parameter> parameters_;
  autograd::LocalStepper stepper_;
  std::int64_t counts_;
  std::optional<ClipConfig> clip_;
  std::optional<std::int64_t> max_micro_steps_;
  std::int64_t inner_count_ = 0;
  GradientExchange* exchange_ = nullptr;  // null: gradients of this process alone
  std::int64_t world_size_ = 1;
  std::int64_t window_count_ = 0;  // micro-steps whose gradients are summed so far
};

}  // namespace castor::strategy
