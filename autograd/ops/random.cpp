// Forward call and gradient of dropout.
#include "autograd/ops/random.h"

#include "autograd/graph.h"
#include "core/ops/random.h"

namespace castor::autograd {

Variable dropout(const Variable& x, RandomKey key, double probability) {
  if (probability == 0) return x;
  return record("dropout", castor::dropout(x.data(), key, probability), {x},
                [=](BackwardContext& context) -> std::vector<Tensor> {
                  return {castor::dropout_backward(context.gradients[0], key, probability)};
                });
}

}  // namespace castor::autograd
