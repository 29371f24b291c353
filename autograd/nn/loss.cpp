// Losses as calls of their ops.
#include "autograd/nn/loss.h"

#include "autograd/ops/elementwise.h"
#include "autograd/ops/reduce.h"
#include "autograd/ops/softmax.h"
#include "core/ops/cast.h"

namespace castor::autograd {

CrossEntropyLoss::CrossEntropyLoss(const CrossEntropyOptions& options) : options_(options) {
  if (!(options.label_smoothing >= 0 && options.label_smoothing <= 1)) {
    throw ConfigError(cat("CrossEntropyLoss: label_smoothing must be in [0, 1], got ", options.label_smoothing),
                      "label_smoothing");
  }
}

Variable CrossEntropyLoss::forward(const Variable& logits, const Tensor& targets) {
  const ForwardScope scope(*this);
  const std::int64_t rows = targets.numel();
  const std::int64_t classes = logits.ndim() > 0 ? logits.shape().back() : 0;
  Shape expected = logits.shape();
  if (logits.ndim() > 0) expected.erase(logits.ndim() - 1);
  if (logits.ndim() < 2 || !(expected == targets.shape())) {
    throw ShapeError(cat("CrossEntropyLoss: expected logits [..., classes] and targets [...], got ", logits.data(),
                         " and ", targets));
  }
  return cross_entropy(reshape(logits, {rows, classes}), castor::reshape(targets, {rows}), options_);
}

Variable CrossEntropyLoss::forward(const Variable& x, Linear& head, const Tensor& targets) {
  if (head.bias().defined() || head.is_fp8() || options_.reduction == Reduction::none)
    return forward(head.forward(x), targets);
  const ForwardScope scope(*this);
  const ForwardScope head_scope(head);
  return linear_cross_entropy(x, head.weight(), targets, options_);
}

Variable MSELoss::forward(const Variable& prediction, const Tensor& target) {
  const ForwardScope scope(*this);
  if (!(prediction.shape() == target.shape())) {
    throw ShapeError(cat("MSELoss: expected a target of the prediction's shape ", prediction.data(), ", got ", target));
  }
  const Variable squares = unary(UnaryOp::square, prediction - Variable(target));
  if (reduction_ == Reduction::none) return squares;
  return reduction_ == Reduction::mean ? mean(squares) : sum(squares);
}

}  // namespace castor::autograd
