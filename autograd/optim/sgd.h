// Stochastic gradient descent with momentum, as PyTorch computes it.
#pragma once

#include "autograd/optim/optimizer.h"
#include "core/ops/optim.h"

namespace castor::autograd {

/// Options of SGD; those marked (group) are hyper-parameters of each group and start from here.
struct SGDConfig {
  double lr = 1e-3;         ///< (group) >= 0
  double momentum = 0;      ///< (group) >= 0
  double dampening = 0;     ///< (group)
  double weight_decay = 0;  ///< (group) >= 0
  bool nesterov = false;    ///< needs momentum > 0 and dampening 0
  bool wd_after_momentum = false;
  bool maximize = false;
};

/// Names every option once.
template <class V>
void describe(V& v, SGDConfig& c) {
  v.field("lr", c.lr, "learning rate");
  v.field("momentum", c.momentum, "share of the last update that is kept");
  v.field("dampening", c.dampening, "the gradient joins the momentum times 1 - dampening");
  v.field("weight_decay", c.weight_decay, "times the parameter is added to its gradient");
  v.field("nesterov", c.nesterov, "look ahead along the momentum");
  v.field("wd_after_momentum", c.wd_after_momentum, "decay joins the step past the momentum, not the gradient");
  v.field("maximize", c.maximize, "climb instead of descend");
  v.check(
      "lr", [&] { return c.lr >= 0; }, "must be at least 0");
  v.check(
      "momentum", [&] { return c.momentum >= 0; }, "must be at least 0");
  v.check(
      "weight_decay", [&] { return c.weight_decay >= 0; }, "must be at least 0");
  v.check(
      "nesterov", [&] { return !c.nesterov || (c.momentum > 0 && c.dampening == 0); },
      "needs momentum > 0 and dampening 0");
}

/// g += weight_decay p; m = momentum m + (1 - dampening) g, at the first step m = g; p -= lr m, or with nesterov
/// p -= lr (g + momentum m); wd_after_momentum adds weight_decay p to the step and not to g. State, if any group has
/// momentum when a run starts: "momentum_buffer". Source: Sutskever et al. 2013, ICML, section 2, in PyTorch's form.
class SGD final : public Optimizer {
 public:
  /// Throws ConfigError for options out of range.
  explicit SGD(const SGDConfig& config = {}, std::vector<ParamGroup> groups = {});
  const char* type_name() const override { return "SGD"; }
  std::vector<StateSpec> states(const Shape& shape) const override;
  void apply(const Range& range, const StepContext& context, const Stats& stats) const override;
  void apply_all(std::span<const Range> ranges, const StepContext& context) const override;
  bool takes_device_scale() const override { return true; }

 private:
  SgdStep step_of(const Range& range, const StepContext& context) const;

  SGDConfig config_;
};

}  // namespace castor::autograd
