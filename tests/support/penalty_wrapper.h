// A model wrapper of a user's own: the sum of the squares of the first parameter, times a weight, is one more loss.
#pragma once

#include <cstdint>
#include <memory>

#include "autograd/ops/elementwise.h"
#include "autograd/ops/reduce.h"
#include "strategy/model_wrapper.h"
#include "strategy/registry.h"

namespace castor::test {

struct PenaltyWrapperConfig {
  double weight = 0;
  double shift = 0;
};

template <class V>
void describe(V& v, PenaltyWrapperConfig& c) {
  v.field("weight", c.weight, "of the penalty", strategy::at_least(0));
  v.field("shift", c.shift, "added to every number that is predicted in a test");
}

class PenaltyWrapper final : public strategy::ColossalAIModelWrapper {
 public:
  PenaltyWrapper(const PenaltyWrapperConfig& config, strategy::BoostedModel& model)
      : ColossalAIModelWrapper(model), config_(config) {}
  Tensor test_step(const autograd::Batch& batch) override {
    return autograd::affine(autograd::Variable(val_step(batch)), 1, config_.shift).data();
  }

 protected:
  strategy::BoostedModel::Losses losses(const autograd::Batch& batch) override {
    return model().run(batch, [this](autograd::TrainableModel& module, const autograd::Batch& here) {
      auto losses = module.loss(here);
      const autograd::Variable first = module.named_parameters().front().second;
      losses["penalty_loss"] = autograd::affine(autograd::sum(first * first), config_.weight, 0);
      return losses;
    });
  }

 private:
  PenaltyWrapperConfig config_;
};

inline void add_penalty_wrapper(strategy::Registry& registry) {
  registry.model_wrappers.add<PenaltyWrapperConfig>(
      "PenaltyWrapper", "adds the squares of the first parameter to the loss",
      [](const PenaltyWrapperConfig& config, strategy::BoostedModel& model) -> std::unique_ptr<strategy::ModelWrapper> {
        return std::make_unique<PenaltyWrapper>(config, model);
      });
}

}  // namespace castor::test
