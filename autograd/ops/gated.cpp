// Forward call and gradient of gated linear units.
#include "autograd/ops/gated.h"

#include "autograd/graph.h"

namespace castor::autograd {

Variable gated(const Variable& packed, Activation activation) {
  const Tensor saved = packed.data();
  return record(GatedArgs::kName, castor::gated(saved, activation), {packed},
                [=](BackwardContext& context) -> std::vector<Tensor> {
                  return {castor::gated_backward(context.gradients[0], saved, activation)};
                });
}

}  // namespace castor::autograd
