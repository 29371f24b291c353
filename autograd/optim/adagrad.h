// Adagrad, as PyTorch computes it: steps shrink with the sum of all squared gradients so far.
#pragma once

#include "autograd/optim/optimizer.h"

namespace castor::autograd {

/// Options of Adagrad; those marked (group) are hyper-parameters of each group and start from here.
struct AdagradConfig {
  double lr = 1e-2;                      ///< (group) >= 0
  double lr_decay = 0;                   ///< (group) >= 0
  double weight_decay = 0;               ///< (group) >= 0
  double initial_accumulator_value = 0;  ///< >= 0
  double eps = 1e-10;                    ///< (group) >= 0
  bool maximize = false;
};

/// Names every option once.
template <class V>
void describe(V& v, AdagradConfig& c) {
  v.field("lr", c.lr, "learning rate");
  v.field("lr_decay", c.lr_decay, "the learning rate at step t is lr / (1 + (t - 1) lr_decay)");
  v.field("weight_decay", c.weight_decay, "times the parameter is added to its gradient");
  v.field("initial_accumulator_value", c.initial_accumulator_value, "what sums of squared gradients start from");
  v.field("eps", c.eps, "added to the square root in the denominator");
  v.field("maximize", c.maximize, "climb instead of descend");
  v.check(
      "lr", [&] { return c.lr >= 0; }, "must be at least 0");
  v.check(
      "lr_decay", [&] { return c.lr_decay >= 0; }, "must be at least 0");
  v.check(
      "weight_decay", [&] { return c.weight_decay >= 0; }, "must be at least 0");
  v.check(
      "initial_accumulator_value", [&] { return c.initial_accumulator_value >= 0; }, "must be at least 0");
  v.check(
      "eps", [&] { return c.eps >= 0; }, "must be at least 0");
}

/// g += weight_decay p; s += g^2; p -= lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps). State: "sum".
/// Source: Duchi et al. 2011, JMLR 12, 2121-2159, in PyTorch's form.
class Adagrad final : public Optimizer {
 public:
  /// Throws ConfigError for options out of range.
  explicit Adagrad(const AdagradConfig& config = {}, std::vector<ParamGroup> groups = {});
  const char* type_name() const override { return "Adagrad"; }
  std::vector<StateSpec> states(const Shape& shape) const override;
  void apply(const Range& range, const StepContext& context, const Stats& stats) const override;

 private:
  AdagradConfig config_;
};

}  // namespace castor::autograd
