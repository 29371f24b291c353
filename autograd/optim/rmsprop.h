// RMSprop, as PyTorch computes it: steps in units of the root of a running mean of squared gradients.
#pragma once

#include "autograd/optim/optimizer.h"

namespace castor::autograd {

/// Options of RMSprop; those marked (group) are hyper-parameters of each group and start from here.
struct RMSpropConfig {
  double lr = 1e-2;         ///< (group) >= 0
  double alpha = 0.99;      ///< (group) in [0, 1)
  double eps = 1e-8;        ///< (group) >= 0
  double weight_decay = 0;  ///< (group) >= 0
  double momentum = 0;      ///< (group) >= 0
  bool centered = false;
  bool maximize = false;
};

/// Names every option once.
template <class V>
void describe(V& v, RMSpropConfig& c) {
  v.field("lr", c.lr, "learning rate");
  v.field("alpha", c.alpha, "decay of the running mean of squares");
  v.field("eps", c.eps, "added to the square root in the denominator");
  v.field("weight_decay", c.weight_decay, "times the parameter is added to its gradient");
  v.field("momentum", c.momentum, "share of the last update that is kept");
  v.field("centered", c.centered, "take the square of the running mean of gradients off the mean of squares");
  v.field("maximize", c.maximize, "climb instead of descend");
  v.check(
      "lr", [&] { return c.lr >= 0; }, "must be at least 0");
  v.check(
      "alpha", [&] { return c.alpha >= 0 && c.alpha < 1; }, "must be in [0, 1)");
  v.check(
      "eps", [&] { return c.eps >= 0; }, "must be at least 0");
  v.check(
      "weight_decay", [&] { return c.weight_decay >= 0; }, "must be at least 0");
  v.check(
      "momentum", [&] { return c.momentum >= 0; }, "must be at least 0");
}

/// g += weight_decay p; v = alpha v + (1 - alpha) g^2; u = g / (sqrt(v) + eps), centered: g / (sqrt(v - a^2) + eps)
/// with a = alpha a + (1 - alpha) g; p -= lr u, or with momentum b = momentum b + u; p -= lr b. States: "square_avg";
/// "momentum_buffer", if any group has momentum when a run starts; centered: "grad_avg". Source: Tieleman & Hinton
/// 2012, lecture 6.5 of "Neural networks for machine learning", in PyTorch's form.
class RMSprop final : public Optimizer {
 public:
  /// Throws ConfigError for options out of range.
  explicit RMSprop(const RMSpropConfig& config = {}, std::vector<ParamGroup> groups = {});
  const char* type_name() const override { return "RMSprop"; }
  std::vector<StateSpec> states(const Shape& shape) const override;
  void apply(const Range& range, const StepContext& context, const Stats& stats) const override;

 private:
  RMSpropConfig config_;
};

}  // namespace castor::autograd
