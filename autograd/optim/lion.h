// Lion: every element steps by the learning rate, in the direction that a mean of gradients has.
#pragma once

#include <array>

#include "autograd/optim/optimizer.h"

namespace castor::autograd {

/// Options of Lion; all are hyper-parameters of each group and start from here.
struct LionConfig {
  double lr = 1e-4;                        ///< >= 0
  std::array<double, 2> betas{0.9, 0.99};  ///< (as beta1 and beta2) each in [0, 1)
  double weight_decay = 0;                 ///< >= 0
};

/// Names every option once.
template <class V>
void describe(V& v, LionConfig& c) {
  v.field("lr", c.lr, "learning rate: the length of every element's step");
  v.field("betas", c.betas, "share of the running mean in the step's direction, and its decay");
  v.field("weight_decay", c.weight_decay, "p *= 1 - lr weight_decay");
  v.check(
      "lr", [&] { return c.lr >= 0; }, "must be at least 0");
  v.check(
      "betas", [&] { return c.betas[0] >= 0 && c.betas[0] < 1 && c.betas[1] >= 0 && c.betas[1] < 1; },
      "must be in [0, 1)");
  v.check(
      "weight_decay", [&] { return c.weight_decay >= 0; }, "must be at least 0");
}

/// p = (1 - lr weight_decay) p - lr sign(beta1 m + (1 - beta1) g), the sign of 0 being 0; m = beta2 m + (1 - beta2) g.
/// State: "exp_avg". Source: Chen et al. 2023, arXiv:2302.06675, algorithm 2.
class Lion final : public Optimizer {
 public:
  /// Throws ConfigError for options out of range.
  explicit Lion(const LionConfig& config = {}, std::vector<ParamGroup> groups = {});
  const char* type_name() const override { return "Lion"; }
  std::vector<StateSpec> states(const Shape& shape) const override;
  void apply(const Range& range, const StepContext& context, const Stats& stats) const override;
};

}  // namespace castor::autograd
