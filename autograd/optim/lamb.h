// Lamb: Adam's direction, its length set for each parameter by the ratio of two norms. The norms are statistics over
// blocks of the whole parameter, so a cut parameter gets the same ratio.
#pragma once

#include <array>

#include "autograd/optim/optimizer.h"
#include "core/ops/optim.h"

namespace castor::autograd {

/// Options of Lamb; those marked (group) are hyper-parameters of each group and start from here.
struct LambConfig {
  double lr = 1e-3;                         ///< (group) >= 0
  std::array<double, 2> betas{0.9, 0.999};  ///< (group, as beta1 and beta2) each in [0, 1)
  double eps = 1e-6;                        ///< (group) >= 0
  double weight_decay = 0;                  ///< (group) >= 0
  bool adam = false;                        ///< trust ratio 1
  bool bias_correction = false;
};

/// Names every option once.
template <class V>
void describe(V& v, LambConfig& c) {
  v.field("lr", c.lr, "learning rate");
  v.field("betas", c.betas, "decay of the running mean of gradients and of their squares");
  v.field("eps", c.eps, "added to the square root in the denominator");
  v.field("weight_decay", c.weight_decay, "times the parameter is added to the direction");
  v.field("adam", c.adam, "always use a trust ratio of 1");
  v.field("bias_correction", c.bias_correction, "scale the learning rate by sqrt(1 - beta2^t) / (1 - beta1^t)");
  v.check(
      "lr", [&] { return c.lr >= 0; }, "must be at least 0");
  v.check(
      "betas", [&] { return c.betas[0] >= 0 && c.betas[0] < 1 && c.betas[1] >= 0 && c.betas[1] < 1; },
      "must be in [0, 1)");
  v.check(
      "eps", [&] { return c.eps >= 0; }, "must be at least 0");
  v.check(
      "weight_decay", [&] { return c.weight_decay >= 0; }, "must be at least 0");
}

/// Options of FusedLAMB; those marked (group) are hyper-parameters of each group and start from here.
struct FusedLAMBConfig {
  double lr = 1e-3;                         ///< (group) >= 0
  std::array<double, 2> betas{0.9, 0.999};  ///< (group, as beta1 and beta2) each in [0, 1)
  double eps = 1e-6;                        ///< (group) >= 0
  double weight_decay = 0.01;               ///< (group) >= 0
  bool bias_correction = true;
  bool adam_w_mode = true;     ///< decay joins the direction; false: the gradient
  bool grad_averaging = true;  ///< m = beta1 m + (1 - beta1) g; false: m = beta1 m + g
  double max_grad_norm = 1;    ///< gradients are scaled to this norm of all of them; 0: never
  bool use_nvlamb = false;     ///< trust ratios without decay, too
};

/// Names every option once.
template <class V>
void describe(V& v, FusedLAMBConfig& c) {
  v.field("lr", c.lr, "learning rate");
  v.field("bias_correction", c.bias_correction, "make up for running means that start at 0");
  v.field("betas", c.betas, "decay of the running mean of gradients and of their squares");
  v.field("eps", c.eps, "added to the square root in the denominator");
  v.field("weight_decay", c.weight_decay,
          "times the parameter is added to the direction or, without adam_w_mode, to the gradient");
  v.field("adam_w_mode", c.adam_w_mode, "decay joins the direction; false: the gradient");
  v.field("grad_averaging", c.grad_averaging, "the gradient joins its running mean times 1 - beta1; false: as it is");
  v.field("max_grad_norm", c.max_grad_norm, "largest L2 norm of all gradients together; 0: no limit");
  v.field("use_nvlamb", c.use_nvlamb, "scale by the trust ratio in groups without decay, too");
  v.retired("amsgrad", false, "the peer has none");
  v.retired("set_grad_none", true, "gradients are dropped after each step");
  v.check(
      "lr", [&] { return c.lr >= 0; }, "must be at least 0");
  v.check(
      "betas", [&] { return c.betas[0] >= 0 && c.betas[0] < 1 && c.betas[1] >= 0 && c.betas[1] < 1; },
      "must be in [0, 1)");
  v.check(
      "eps", [&] { return c.eps >= 0; }, "must be at least 0");
  v.check(
      "weight_decay", [&] { return c.weight_decay >= 0; }, "must be at least 0");
  v.check(
      "max_grad_norm", [&] { return c.max_grad_norm >= 0; }, "must be at least 0");
}

/// u = m / (sqrt(v) + eps) + weight_decay p; p -= lr |p| / |u| u, the ratio being 1 when a norm is 0.
/// States: "exp_avg", "exp_avg_sq". Source: You et al. 2020, arXiv:1904.00962, in ColossalAI's form.
class Lamb final : public Optimizer {
 public:
  /// Throws ConfigError for options out of range.
  explicit Lamb(const LambConfig& config = {}, std::vector<ParamGroup> groups = {});
  const char* type_name() const override { return "Lamb"; }
  std::vector<StateSpec> states(const Shape& shape) const override;
  int stats_passes() const override { return 1; }
  void accumulate_stats(int pass, const Range& range, const StepContext& context, const Stats& finished,
                        Stats& carry) const override;
  void apply(const Range& range, const StepContext& context, const Stats& stats) const override;

 private:
  LambScalars scalars(const Range& range, const StepContext& context) const;

  LambConfig config_;
};

/// Lamb in the form of apex's and ColossalAI's FusedLAMB: gradients limited by the norm of all of them, m and v
/// corrected for their start, and a trust ratio only in groups with decay or with use_nvlamb. States as Lamb's.
/// Source: You et al. 2020, arXiv:1904.00962, algorithm 2.
class FusedLAMB final : public Optimizer {
 public:
  /// Throws ConfigError for options out of range.
  explicit FusedLAMB(const FusedLAMBConfig& config = {}, std::vector<ParamGroup> groups = {});
  const char* type_name() const override { return "FusedLAMB"; }
  std::vector<StateSpec> states(const Shape& shape) const override;
  bool needs_gradient_norm() const override { return config_.max_grad_norm > 0; }
  int stats_passes() const override { return 1; }
  void accumulate_stats(int pass, const Range& range, const StepContext& context, const Stats& finished,
                        Stats& carry) const override;
  void apply(const Range& range, const StepContext& context, const Stats& stats) const override;

 private:
  LambScalars scalars(const Range& range, const StepContext& context) const;

  FusedLAMBConfig config_;
};

}  // namespace castor::autograd
