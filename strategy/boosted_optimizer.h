// BoostedOptimizer: an optimizer over a model that a plugin spread, as Booster::boost gives it: gradients of several
// backward passes are summed, then divided once by their number, unscaled, clipped and applied. The sum comes first and
// the division once, so that the result does not depend on how a global batch was cut. When a step is due is the
// caller's choice: a program's own, or OptimWrapper's.
//
// Where losses are means over unequal numbers of items, counts_items weighs each micro-batch by its own: its loss's
// gradient starts as items / unit, the unit being a power of two near them so that this is exact and 16 bits neither
// overflow nor vanish, and the step makes up for the unit and the sum of all items.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "autograd/nn/trainable.h"
#include "autograd/optim/grad_scaler.h"
#include "autograd/optim/optimizer.h"
#include "strategy/config/field.h"
#include "strategy/sharding.h"

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
  bool did_update = false;   ///< false inside an accumulation window
  bool was_skipped = false;  ///< the window's gradients overflowed in fp16: nothing was stepped
  std::optional<double> grad_norm;
  std::optional<double> loss_scale;  ///< fp16: of this window
};

struct BoostedOptimizerOptions {
  std::optional<ClipConfig> clip = {};
  std::int64_t world_size = 1;                                 ///< ranks whose gradients the sharding adds
  std::optional<autograd::GradScalerConfig> grad_scaler = {};  ///< fp16: scales losses, skips steps that overflowed
  /// True: micro-batches weigh by the items that their losses are means over; false: all alike.
  bool counts_items = false;
  /// The sum and the largest of a number over all ranks, for counts_items; unset: there is one rank.
  std::function<std::int64_t(std::int64_t)> sum_over_ranks = {}, largest_of_ranks = {};
  /// The group of each parameter; those that are not in it are in group 0.
  std::map<const autograd::VariableState*, int> group_of = {};
  /// Who sees what backward computes; unset or null: nobody.
  std::function<autograd::ResultObserver*()> watch = {};
  /// Asked, on all ranks together, when training is given up: where the first value that is not finite arose.
  std::function<std::string()> find_not_finite = {};
  /// Called at the end of each window of so many micro-steps, whether it was stepped or skipped.
  std::function<void(std::int64_t micro_steps)> window_ended = {};
};

class BoostedOptimizer {
 public:
  BoostedOptimizer(std::unique_ptr<autograd::Optimizer> optimizer, std::unique_ptr<Sharding> sharding,
                   const BoostedOptimizerOptions& options);

  /// One micro-step's backward of `loss` (undivided).
  ///   items  what `loss` is the mean over, with counts_items: a window's gradient is then that of the mean over all
  ///          items of all its micro-batches, counted exactly. A window without any has none
  /// Throws CommError.
  void backward(const autograd::Variable& loss, const autograd::LossItems& items = {});
  /// What `backward` does beside computing, for a recorded pass that was run (recorded_step.h).
  void backward_was_run();
  /// Ends the window: applies the mean of the gradients of all backward passes since the last step, of all ranks, and
  /// forgets them. Throws InternalError where there was none, or where the last of them was inside no_sync;
  /// NumericsError when max_skips steps in a row had to be skipped, naming the first parameter whose gradient is not
  /// finite; CommError.
  UpdateResult step();

  /// True: gradients of later backward passes stay on this rank, as one sum, until one with false sends it. All ranks
  /// do so alike. Only where the sharding can_defer(); Booster::no_sync asks.
  void set_deferred(bool is_deferred);

  autograd::Optimizer& optimizer() { return *optimizer_; }
  const autograd::Stepper& stepper() const { return stepper_; }
  autograd::Stepper& stepper() { return stepper_; }
  Sharding& sharding() { return *sharding_; }
  const Sharding& sharding() const { return *sharding_; }
  /// The norm of each parameter's gradient of the last window that was stepped or skipped, before clipping; empty where
  /// no norm is needed: without fp16 and without a limit on it.
  std::map<std::string, double> gradient_norms() const;
  /// From now on updates are recorded and run as one where they can be (`compile`).
  void record_updates() { stepper_.record_steps(); }
  /// True where every window's norms are computed.
  bool has_norms() const { return scaler_ || (options_.clip && options_.clip->type == "norm"); }
  /// Null unless losses are scaled.
  autograd::GradScaler* grad_scaler() { return scaler_ ? &*scaler_ : nullptr; }
  /// True before the window whose skip would be the last that is allowed.
  bool is_last_chance() const { return scaler_ && scaler_->state().skipped_in_row + 1 >= scaler_->config().max_skips; }
  bool counts_items() const { return options_.counts_items; }
  /// Position within its window of the next micro-step: backward passes since the last step.
  std::int64_t window_position() const { return window_count_; }
  void set_window_position(std::int64_t position) { window_count_ = position; }

 private:
  UpdateResult step_window();
  double item_weight(const autograd::LossItems& items);
  double items_factor(std::int64_t micro_batches);
  void check_skips() const;

  std::unique_ptr<autograd::Optimizer> optimizer_;
  std::unique_ptr<Sharding> sharding_;
  BoostedOptimizerOptions options_;
  autograd::Stepper stepper_;
  std::optional<autograd::GradScaler> scaler_;
  std::int64_t window_count_ = 0;  // micro-steps whose gradients are summed so far
  std::vector<double> squares_;    // of each parameter's gradient, times the scale's
  double squares_scale_ = 1;
  bool is_deferred_ = false;
  bool is_sent_ = true;  // what they are summed from has left this rank
  bool has_warned_ = false;
  std::int64_t window_items_ = 0;  // and what their losses are means over
  std::int64_t item_unit_ = 0;     // a power of two
};

}  // namespace castor::strategy
