// A user's own step: a model wrapper that adds the sum of all weights' magnitudes to the loss (Tibshirani 1996,
// "Regression shrinkage and selection via the lasso"). Everything else of a step stays the library's.
//
// Delicate: the pass runs inside BoostedModel::run, which brings the micro-step's random numbers and gathers weights
// that are sharded when they are used; a penalty of one value for all micro-batches comes out of their mean as it went
// in.
#pragma once

#include "strategy/config/field.h"
#include "strategy/model_wrapper.h"

namespace extend {

/// Options of L1Penalty.
struct L1PenaltyConfig {
  double weight = 0;
};

/// Names every option once.
template <class V>
void describe(V& v, L1PenaltyConfig& c) {
  v.field("weight", c.weight, "of the sum of magnitudes beside the model's losses", castor::strategy::required,
          castor::strategy::at_least(0));
}

/// One more loss, "l1_loss", from which the total and the log follow.
class L1Penalty final : public castor::strategy::ColossalAIModelWrapper {
 public:
  L1Penalty(const L1PenaltyConfig& config, castor::strategy::BoostedModel& model)
      : ColossalAIModelWrapper(model), weight_(config.weight) {}

 protected:
  castor::strategy::BoostedModel::Losses losses(const castor::autograd::Batch& batch) override;

 private:
  double weight_;
};

}  // namespace extend
