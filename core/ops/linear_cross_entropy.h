// A linear layer and the cross entropy of its results, as one op: the last step of a classifier with many classes,
// whose logits are larger than all else of a model. They exist for a stretch of rows at a time, and their gradient is
// written over them and used up before the next stretch.
//
// Numerics: a stretch has kLinearCrossEntropyRows rows on every device; the weight's gradient is the sum of the
// stretches' products in order, in f32 (f64 for f64), rounded once. Up to that many rows it is one product. Sources of
// the idea: llm.c's fused classifier; Wijmans et al. 2024, arXiv:2411.09009.
#pragma once

#include "core/ops/matmul.h"
#include "core/ops/softmax.h"

namespace castor {

/// Rows whose logits exist at a time.
inline constexpr std::int64_t kLinearCrossEntropyRows = 8192;

/// The loss, and its gradients up to the factor that backward brings. Undefined where not asked for.
struct LinearCrossEntropy {
  Tensor loss;               ///< [], f32 (f64 for f64)
  Tensor x, weight;          ///< gradients: x's as x; the weight's in x's dtype, or not yet rounded
  Tensor counted;            ///< f64 []: the rows whose target is not ignore_index
  DType dtype = DType::f32;  ///< of x and weight
};

/// Which gradients linear_cross_entropy computes.
struct LinearCrossEntropyNeeds {
  bool x = true, weight = true;
};

/// Cross entropy of x weight^T with the targets.
///   x        f32|bf16|f16|f64 [rows, k], any strides
///   weight   [classes, k] of x's dtype
///   targets  i64|i32 [rows]; each in [0, classes) or options.ignore_index
///   needs    which gradients to compute
/// Throws ShapeError (also for a target out of range, where the device can say so), DTypeError, DeviceError;
/// ConfigError for a label_smoothing outside [0, 1] and for reduction none.
LinearCrossEntropy linear_cross_entropy(const Tensor& x, const Tensor& weight, const Tensor& targets,
                                        const CrossEntropyOptions& options, LinearCrossEntropyNeeds needs);

/// The gradients times the loss's gradient `dloss` [], written over those of `forward`; `bias` is undefined.
LinearGradients linear_cross_entropy_backward(const LinearCrossEntropy& forward, const Tensor& dloss,
                                              const CrossEntropyOptions& options);

}  // namespace castor
