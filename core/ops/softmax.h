// Softmax, its logarithm, and cross entropy on logits, over the last axis. 16-bit floats are computed in f32.
//
// Delicate: cross entropy makes the gradient of the logits in its forward pass, in the logits' dtype, over the logits
// where they are handed over: no other tensor of that size exists. In f16 that gradient is kept unscaled (a probability
// divided by a large batch would underflow) and divided in backward.
#pragma once

#include "core/device/dispatch.h"
#include "core/tensor/tensor.h"

namespace castor {

/// y = exp(x) / sum(exp(x)), or its logarithm, over the last axis. x, y: [..., n] row-major, f32|bf16|f16|f64.
struct SoftmaxArgs {
  static constexpr const char* kName = "softmax";
  View x, y;
  bool is_log;
};
Cost cost(const SoftmaxArgs& args);
void run(const Cpu& cpu, const SoftmaxArgs& args);
void run(const Cuda& cuda, const SoftmaxArgs& args);

/// dx from the result y and dy; all row-major of one dtype. dx may be dy.
struct SoftmaxBackwardArgs {
  static constexpr const char* kName = "softmax_backward";
  View y, dy, dx;
  bool is_log;
};
Cost cost(const SoftmaxBackwardArgs& args);
void run(const Cpu& cpu, const SoftmaxBackwardArgs& args);
void run(const Cuda& cuda, const SoftmaxBackwardArgs& args);

/// How the losses of rows become one.
enum class Reduction : std::uint8_t { mean, sum, none };

struct CrossEntropyOptions {
  std::int64_t ignore_index = -100;  ///< rows with this target have loss 0 and gradient 0, and do not count
  double label_smoothing = 0;        ///< this share of the target's weight is spread evenly over all classes
  Reduction reduction = Reduction::mean;
};

/// logits [rows, classes] row-major f32|bf16|f16|f64; targets [rows] i64|i32 row-major; loss f32 (f64 for f64): [] or,
/// unreduced, [rows]; gradient: as logits, or absent; may be the logits; counted: f64 [], the rows that count;
/// workspace: f64 [rows]. logits and gradient may be a stretch of the rows, from first_row on: calls for all stretches
/// in order are one call; the first one counts, the last one writes the loss.
struct CrossEntropyArgs {
  static constexpr const char* kName = "cross_entropy";
  View logits, targets, loss, gradient, counted, workspace;
  CrossEntropyOptions options;
  bool gradient_of_mean;  ///< the gradient is divided by `counted`
  std::int64_t first_row = 0;
};
Cost cost(const CrossEntropyArgs& args);
void run(const Cpu& cpu, const CrossEntropyArgs& args);
void run(const Cuda& cuda, const CrossEntropyArgs& args);

/// gradient *= dloss (/ counted, where present), in place, on the device: dloss [] or [rows]. A factor of 1 costs
/// nothing.
struct CrossEntropyScaleArgs {
  static constexpr const char* kName = "cross_entropy_scale";
  View gradient, dloss, counted;
};
Cost cost(const CrossEntropyScaleArgs& args);
void run(const Cpu& cpu, const CrossEntropyScaleArgs& args);
void run(const Cuda& cuda, const CrossEntropyScaleArgs& args);

/// Softmax over the last axis.
///   x        f32|bf16|f16|f64 [..., n], n >= 1 unless empty, any strides
///   returns  same dtype and shape, row-major; rows sum to 1. A row of -infinity only gives NaN.
/// Throws ShapeError if x has no axes; DTypeError for other dtypes.
Tensor softmax(const Tensor& x);
/// log(softmax(x)) without overflow. Else as softmax.
Tensor log_softmax(const Tensor& x);

/// Gradient of softmax from its result: y (dy - sum(dy y)).
Tensor softmax_backward(const Tensor& y, const Tensor& dy);
/// Gradient of log_softmax from its result: dy - exp(y) sum(dy).
Tensor log_softmax_backward(const Tensor& y, const Tensor& dy);

struct CrossEntropy {
  Tensor loss;      ///< [] or [rows]; f32 (f64 for f64 logits)
  Tensor gradient;  ///< of the logits, not yet scaled by the loss's gradient; undefined if not wanted
  Tensor counted;   ///< f64 []: the rows whose target is not ignore_index
};

/// Cross entropy of softmax(logits) with the targets.
///   logits   f32|bf16|f16|f64 [rows, classes], any strides
///   targets  i64|i32 [rows]; each in [0, classes) or ignore_index
/// The mean is over counted rows; with none, loss and gradient are 0.
/// Throws ShapeError (also for a target out of range, where the device can say so), DTypeError, DeviceError;
/// ConfigError for a label_smoothing outside [0, 1]. Source: Szegedy et al. 2016, arXiv:1512.00567, section 7 (label
/// smoothing).
CrossEntropy cross_entropy(const Tensor& logits, const Tensor& targets, const CrossEntropyOptions& options = {},
                           bool wants_gradient = false);

/// The logits' gradient, scaled by the loss's gradient, written over `forward.gradient`.
///   dloss  as forward.loss
Tensor cross_entropy_backward(const CrossEntropy& forward, const Tensor& dloss, const CrossEntropyOptions& options);

}  // namespace castor
