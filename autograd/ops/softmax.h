// Differentiable softmax and cross entropy. Shapes, dtypes and errors are those of core/ops/softmax.h.
#pragma once

#include "autograd/variable.h"
#include "core/ops/softmax.h"

namespace castor::autograd {

/// Softmax over the last axis.
Variable softmax(const Variable& x);
/// Its logarithm.
Variable log_softmax(const Variable& x);

/// Cross entropy of softmax(logits), [rows, classes], with targets i64|i32 [rows]. The loss is f32 (f64 for f64
/// logits). Where a gradient will be wanted, forward computes it; nothing but it is saved.
Variable cross_entropy(const Variable& logits, const Tensor& targets, const CrossEntropyOptions& options = {});

/// Cross entropy of softmax(x weight^T) without ever holding all logits; see core/ops/linear_cross_entropy.h.
///   x        [..., k]
///   weight   [classes, k]
///   targets  i64|i32 [...]
/// Forward computes the gradients that will be wanted. Throws ConfigError for reduction none.
Variable linear_cross_entropy(const Variable& x, const Variable& weight, const Tensor& targets,
                              const CrossEntropyOptions& options = {});

}  // namespace castor::autograd
