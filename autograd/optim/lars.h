// Lars: SGD whose learning rate is set for each parameter by the ratio of its norm to its gradient's. The norms are
// statistics over blocks of the whole parameter, so a cut parameter gets the same ratio.
#pragma once

#include "autograd/optim/optimizer.h"

namespace castor::autograd {

/// Options of Lars; all are hyper-parameters of each group and start from here.
struct LarsConfig {
  double lr = 1e-3;         ///< >= 0
  double momentum = 0;      ///< >= 0
  double eeta = 1e-3;       ///< in (0, 1]
  double weight_decay = 0;  ///< >= 0
  double epsilon = 0;       ///< >= 0
};

/// Names every option once.
template <class V>
void describe(V& v, LarsConfig& c) {
  v.field("lr", c.lr, "learning rate");
  v.field("momentum", c.momentum, "share of the last update that is kept");
  v.field("eeta", c.eeta, "the trust coefficient: length of a step in units of the parameter's norm");
  v.field("weight_decay", c.weight_decay, "times the parameter is added to its gradient");
  v.field("epsilon", c.epsilon, "added to the ratio's denominator");
  v.check(
      "lr", [&] { return c.lr >= 0; }, "must be at least 0");
  v.check(
      "momentum", [&] { return c.momentum >= 0; }, "must be at least 0");
  v.check(
      "eeta", [&] { return c.eeta > 0 && c.eeta <= 1; }, "must be in (0, 1]");
  v.check(
      "weight_decay", [&] { return c.weight_decay >= 0; }, "must be at least 0");
  v.check(
      "epsilon", [&] { return c.epsilon >= 0; }, "must be at least 0");
}

/// ratio = eeta |p| / (|g| + weight_decay |p| + epsilon), at most 50, and 1 when a norm is 0; g += weight_decay p, each
/// element limited to [-10, 10]; m = momentum m + g, at the first step m = g; p -= lr ratio m.
/// State, if any group has momentum when a run starts: "momentum_buffer".
/// Source: You et al. 2017, arXiv:1708.03888, algorithm 1, with ColossalAI's limits.
class Lars final : public Optimizer {
 public:
  /// Throws ConfigError for options out of range.
  explicit Lars(const LarsConfig& config = {}, std::vector<ParamGroup> groups = {});
  const char* type_name() const override { return "Lars"; }
  std::vector<StateSpec> states(const Shape& shape) const override;
  int stats_passes() const override { return 1; }
  void accumulate_stats(int pass, const Range& range, const StepContext& context, const Stats& finished,
                        Stats& carry) const override;
  void apply(const Range& range, const StepContext& context, const Stats& stats) const override;
};

}  // namespace castor::autograd
