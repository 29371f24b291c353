// Forward call and gradient of the rotary embedding: a rotation's transpose is its inverse, so nothing of x is kept.
#include "autograd/ops/rotary.h"

#include "autograd/graph.h"

namespace castor::autograd {

Variable rotary(const Variable& x, const RotaryTable& table, std::int64_t offset) {
  return record("rotary", castor::rotary(x.data(), table, offset), {x},
                [=](BackwardContext& context) -> std::vector<Tensor> {
                  return {castor::rotary(context.gradients[0], table, offset, true)};
                });
}

}  // namespace castor::autograd
