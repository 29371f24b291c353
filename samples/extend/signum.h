// A user's own optimizer: Signum, which steps by the sign of the running mean of gradients. It works on ranges like the
// library's, so a strategy may cut, shard or move the parameters and it will not notice.
//
// Delicate: an update reads nothing but its own element, so any cut gives the same bits; and a gradient that did not
// come is zeros. Source: Bernstein et al. 2018, "signSGD", arXiv:1802.04434, algorithm 2 (one worker).
#pragma once

#include <vector>

#include "autograd/optim/optimizer.h"
#include "strategy/config/field.h"

namespace extend {

/// Options; lr, momentum and weight_decay are hyper-parameters of each group and start from here.
struct SignumConfig {
  double lr = 1e-3;
  double momentum = 0.9;
  double weight_decay = 0;
};

/// Names every option once.
template <class V>
void describe(V& v, SignumConfig& c) {
  v.field("lr", c.lr, "length of every step of every weight", castor::strategy::at_least(0));
  v.field("momentum", c.momentum, "share of the running mean that is kept", castor::strategy::at_least(0),
          castor::strategy::less_than(1));
  v.field("weight_decay", c.weight_decay, "p -= lr * weight_decay * p beside the step", castor::strategy::at_least(0));
}

/// m = momentum m + (1 - momentum) g; p -= lr (sign(m) + weight_decay p). State: "exp_avg".
class Signum final : public castor::autograd::Optimizer {
 public:
  explicit Signum(const SignumConfig& config = {}, std::vector<castor::autograd::ParamGroup> groups = {});
  const char* type_name() const override { return "Signum"; }
  std::vector<castor::autograd::StateSpec> states(const castor::Shape& shape) const override;
  void apply(const castor::autograd::Range& range, const castor::autograd::StepContext& context,
             const castor::autograd::Stats& stats) const override;
};

}  // namespace extend
