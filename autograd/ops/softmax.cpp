// Forward calls and gradients of softmax and cross entropy.
//
// Delicate: cross entropy's backward scales the saved gradient where it lies, unless the graph is kept for another
// backward.
#include "autograd/ops/softmax.h"

#include "autograd/graph.h"
#include "core/ops/cast.h"

namespace castor::autograd {

Variable softmax(const Variable& x) {
  const Tensor y = castor::softmax(x.data());
  return record("softmax", y, {x}, [y](BackwardContext& context) -> std::vector<Tensor> {
    return {castor::softmax_backward(y, context.gradients[0])};
  });
}

Variable log_softmax(const Variable& x) {
  const Tensor y = castor::log_softmax(x.data());
  return record("log_softmax", y, {x}, [y](BackwardContext& context) -> std::vector<Tensor> {
    return {castor::log_softmax_backward(y, context.gradients[0])};
  });
}

Variable cross_entropy(const Variable& logits, const Tensor& targets, const CrossEntropyOptions& options) {
  const CrossEntropy forward = castor::cross_entropy(logits.data(), targets, options, needs_gradient({&logits}));
  return record("cross_entropy", forward.loss, {logits}, [=](BackwardContext& context) -> std::vector<Tensor> {
    CrossEntropy own = forward;
    if (context.is_graph_kept) own.gradient = clone(forward.gradient);
    return {castor::cross_entropy_backward(own, context.gradients[0], options)};
  });
}

}  // namespace castor::autograd
