// Forward calls and gradients of softmax and cross entropy.
//
// Delicate: cross entropy's backward scales the saved gradients where they lie, unless the graph is kept for another
// backward.
#include "autograd/ops/softmax.h"

#include "autograd/graph.h"
#include "core/ops/cast.h"
#include "core/ops/linear_cross_entropy.h"

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

Variable linear_cross_entropy(const Variable& x, const Variable& weight, const Tensor& targets,
                              const CrossEntropyOptions& options) {
  const Shape shape = x.shape();
  Shape expected = shape;
  if (shape.ndim() > 0) expected.erase(shape.ndim() - 1);
  if (shape.ndim() < 2 || !(expected == targets.shape())) {
    throw ShapeError(
        cat("linear_cross_entropy: expected x [..., k] and targets [...], got ", x.data(), " and ", targets));
  }
  const Tensor rows = castor::reshape(x.data(), {targets.numel(), shape.back()});
  const LinearCrossEntropy forward =
      castor::linear_cross_entropy(rows, weight.data(), castor::reshape(targets, {targets.numel()}), options,
                                   {needs_gradient({&x}), needs_gradient({&weight})});
  return record("linear_cross_entropy", forward.loss, {x, weight},
                [=](BackwardContext& context) -> std::vector<Tensor> {
                  LinearCrossEntropy own = forward;
                  if (context.is_graph_kept) {
                    if (own.x.defined()) own.x = clone(own.x);
                    if (own.weight.defined()) own.weight = clone(own.weight);
                  }
                  LinearGradients gradients = castor::linear_cross_entropy_backward(own, context.gradients[0], options);
                  if (gradients.x.defined()) gradients.x = gradients.x.reshape(shape);
                  return {std::move(gradients.x), std::move(gradients.weight)};
                });
}

}  // namespace castor::autograd
