// CAME: Adafactor with a running mean of updates, each element of which steps the further the surer it is: the mean of
// what updates are off it is kept as one number a row and one a column, like the second moment.
#pragma once

#include <array>
#include <optional>

#include "autograd/optim/optimizer.h"
#include "core/ops/came.h"

namespace castor::autograd {

/// Options of CAME; those marked (group) are hyper-parameters of each group and start from here.
struct CAMEConfig {
  std::optional<double> lr;                         ///< (group) > 0, needed
  std::array<double, 2> eps{1e-30, 1e-16};          ///< added to squared gradients; to squared residuals
  double clip_threshold = 1.0;                      ///< > 0
  std::array<double, 3> betas{0.9, 0.999, 0.9999};  ///< (group, as beta1, beta2 and beta3) each in [0, 1)
  double weight_decay = 0;                          ///< (group) >= 0
};

/// Names every option once.
template <class V>
void describe(V& v, CAMEConfig& c) {
  v.field("lr", c.lr, "learning rate; must be given");
  v.field("eps", c.eps, "added to squared gradients, and to squares of what updates are off their running mean");
  v.field("clip_threshold", c.clip_threshold, "largest root mean square of an update");
  v.field("betas", c.betas, "decay of the running mean of updates, of squared gradients and of squared residuals");
  v.field("weight_decay", c.weight_decay, "p *= 1 - lr weight_decay");
  v.check(
      "lr", [&] { return c.lr.has_value() && *c.lr > 0; }, "is needed and must be more than 0");
  v.check(
      "eps", [&] { return c.eps[0] >= 0 && c.eps[1] >= 0; }, "must be at least 0");
  v.check(
      "clip_threshold", [&] { return c.clip_threshold > 0; }, "must be more than 0");
  v.check(
      "betas",
      [&] {
        return c.betas[0] >= 0 && c.betas[0] < 1 && c.betas[1] >= 0 && c.betas[1] < 1 && c.betas[2] >= 0 &&
               c.betas[2] < 1;
      },
      "must be in [0, 1)");
  v.check(
      "weight_decay", [&] { return c.weight_decay >= 0; }, "must be at least 0");
}

/// u = g / sqrt(v), clipped by its root mean square as Adafactor's; m = beta1 m + (1 - beta1) u; s the running mean of
/// (u - m)^2 + eps2, factored as v is; p = (1 - lr weight_decay) p - lr m / sqrt(s). A parameter with one axis has no s
/// and steps by m.
/// States: "exp_avg" and, for a parameter with two axes or more, "exp_avg_sq_row", "exp_avg_res_row" [..., rows] and
/// "exp_avg_sq_col", "exp_avg_res_col" [..., columns], else "exp_avg_sq".
/// Source: Luo et al. 2023, arXiv:2307.02047, algorithm 2.
class CAME final : public Optimizer {
 public:
  /// Throws ConfigError for options out of range.
  explicit CAME(const CAMEConfig& config, std::vector<ParamGroup> groups = {});
  const char* type_name() const override { return "CAME"; }
  std::vector<StateSpec> states(const Shape& shape) const override;
  int stats_passes() const override { return 3; }
  void accumulate_stats(int pass, const Range& range, const StepContext& context, const Stats& finished,
                        Stats& carry) const override;
  void finish_pass(int pass, const Range& range, const StepContext& context, const Stats& finished) const override;
  void apply(const Range& range, const StepContext& context, const Stats& stats) const override;

 private:
  /// update_factor is set once `stats` has the update's size.
  CameScalars scalars(const Range& range, const StepContext& context, const Stats& stats) const;

  CAMEConfig config_;
};

}  // namespace castor::autograd
