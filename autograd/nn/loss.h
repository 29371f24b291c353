// Losses as modules, with PyTorch's names and options. They have no parameters; the module only keeps the options and
// gives strategies a place to hook in.
#pragma once

#include "autograd/nn/layers.h"
#include "core/ops/softmax.h"

namespace castor::autograd {

/// Softmax and negative log-likelihood in one pass; options as in core/ops/softmax.h (ignore_index, label_smoothing,
/// reduction).
class CrossEntropyLoss final : public Module {
 public:
  /// Throws ConfigError for label_smoothing outside [0, 1].
  explicit CrossEntropyLoss(const CrossEntropyOptions& options = {});
  /// logits [..., classes] f32|bf16|f16, targets i64|i32 [...] -> f32 [], or [rows] without reduction; leading axes are
  /// merged. Throws ShapeError when the targets' shape is not that of the logits without the last axis.
  Variable forward(const Variable& logits, const Tensor& targets);
  /// The loss of head.forward(x), the logits computed for some rows at a time where the head has no bias, does
  /// not multiply in fp8, and the losses are reduced. x [..., in_features], targets [...].
  Variable forward(const Variable& x, Linear& head, const Tensor& targets);

 private:
  CrossEntropyOptions options_;
};

/// (prediction - target)^2, reduced.
class MSELoss final : public Module {
 public:
  explicit MSELoss(Reduction reduction = Reduction::mean) : reduction_(reduction) {}
  /// Equal shapes -> [], or the same shape without reduction. Throws ShapeError when the shapes differ.
  Variable forward(const Variable& prediction, const Tensor& target);

 private:
  Reduction reduction_;
};

}  // namespace castor::autograd
