// Adafactor: Adam's second moment of a matrix kept as one number a row and one a column. Row and column sums, the
// parameter's size and the update's size are statistics over blocks of the whole parameter, so a cut parameter gets the
// same update.
#pragma once

#include <array>
#include <optional>

#include "autograd/optim/optimizer.h"
#include "core/ops/optim.h"

namespace castor::autograd {

/// Options of Adafactor; those marked (group) are hyper-parameters of each group and start from here.
struct AdafactorConfig {
  std::optional<double> lr;                ///< (group) >= 0; given exactly when relative_step is false
  std::array<double, 2> eps{1e-30, 1e-3};  ///< added to squared gradients; least size of a parameter
  double clip_threshold = 1.0;             ///< > 0
  double decay_rate = -0.8;                ///< <= 0
  std::optional<double> beta1;             ///< (group) in [0, 1)
  double weight_decay = 0;                 ///< (group) >= 0
  bool scale_parameter = true;
  bool relative_step = true;
  bool warmup_init = false;  ///< needs relative_step
};

/// Names every option once.
template <class V>
void describe(V& v, AdafactorConfig& c) {
  v.field("lr", c.lr, "learning rate; null with relative_step, which finds its own");
  v.field("eps", c.eps,
          "added to squared gradients, and the least root mean square of a parameter that scales its step");
  v.field("clip_threshold", c.clip_threshold, "largest root mean square of an update");
  v.field("decay_rate", c.decay_rate, "the second moment's decay at step t is 1 - t^decay_rate");
  v.field("beta1", c.beta1, "decay of the running mean of updates; null keeps none");
  v.field("weight_decay", c.weight_decay, "p *= 1 - step size times weight_decay");
  v.field("scale_parameter", c.scale_parameter, "scale the step by the parameter's root mean square");
  v.field("relative_step", c.relative_step, "step size min(1e-2, 1/sqrt(t)) in place of lr");
  v.field("warmup_init", c.warmup_init, "start relative steps from 1e-6 t");
  v.check(
      "lr", [&] { return c.lr.has_value() != c.relative_step; },
      "is needed without relative_step and has no meaning with it");
  v.check(
      "lr", [&] { return c.lr.value_or(0) >= 0; }, "must be at least 0");
  v.check(
      "eps", [&] { return c.eps[0] >= 0 && c.eps[1] >= 0; }, "must be at least 0");
  v.check(
      "clip_threshold", [&] { return c.clip_threshold > 0; }, "must be more than 0");
  v.check(
      "decay_rate", [&] { return c.decay_rate <= 0; }, "must be at most 0");
  v.check(
      "beta1", [&] { return c.beta1.value_or(0) >= 0 && c.beta1.value_or(0) < 1; }, "must be in [0, 1)");
  v.check(
      "weight_decay", [&] { return c.weight_decay >= 0; }, "must be at least 0");
  v.check(
      "warmup_init", [&] { return !c.warmup_init || c.relative_step; }, "needs relative_step");
}

/// States: "exp_avg_sq_row" [..., rows] and "exp_avg_sq_col" [..., columns] of a parameter with two axes or more, else
/// "exp_avg_sq"; with beta1 "exp_avg". Source: Shazeer & Stern 2018, arXiv:1804.04235, algorithms 4 and 5.
class Adafactor final : public Optimizer {
 public:
  /// Throws ConfigError for options out of range.
  explicit Adafactor(const AdafactorConfig& config = {}, std::vector<ParamGroup> groups = {});
  const char* type_name() const override { return "Adafactor"; }
  std::vector<StateSpec> states(const Shape& shape) const override;
  int stats_passes() const override { return 2; }
  void accumulate_stats(int pass, const Range& range, const StepContext& context, const Stats& finished,
                        Stats& carry) const override;
  void finish_pass(int pass, const Range& range, const StepContext& context, const Stats& finished) const override;
  void apply(const Range& range, const StepContext& context, const Stats& stats) const override;

 private:
  double second_decay(const StepContext& context) const;
  /// The update's factors are set once `stats` has the update's size.
  AdafactorScalars scalars(const Range& range, const StepContext& context, const Stats& stats) const;

  AdafactorConfig config_;
};

}  // namespace castor::autograd
