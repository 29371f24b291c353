// The wrapper of the example.
#include "samples/extend/l1_penalty.h"

#include "autograd/ops/elementwise.h"
#include "autograd/ops/reduce.h"

namespace extend {

using namespace castor::autograd;

castor::strategy::BoostedModel::Losses L1Penalty::losses(const Batch& batch) {
  return model().run(batch, [this](TrainableModel& module, const Batch& here) {
    auto losses = module.loss(here);
    Variable magnitudes;
    for (const auto& [name, parameter] : module.named_parameters()) {
      const Variable sum_of_magnitudes = sum(unary(castor::UnaryOp::abs, parameter));
      magnitudes = magnitudes.defined() ? magnitudes + sum_of_magnitudes : sum_of_magnitudes;
    }
    losses["l1_loss"] = affine(magnitudes, weight_, 0);
    return losses;
  });
}

}  // namespace extend
