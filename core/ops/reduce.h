// Reductions over any axes. Small floats are read as f32. Sums run in f32 inside blocks of at most 1024 elements (f64
// for f64 operands), and block results are added in f64 in a fixed order; the result is rounded to the operand's dtype
// once.
//
// Delicate: blocks depend on the shape and strides only, never on the number of threads, so neither do the bits.
#pragma once

#include "core/device/dispatch.h"
#include "core/tensor/tensor.h"

namespace castor {

enum class ReduceOp : std::uint8_t {
  sum,
  mean,
  max,
  min,
  norm1,      ///< sum of absolute values
  norm2,      ///< square root of the sum of squares
  norm_inf,   ///< largest absolute value
  logsumexp,  ///< log of the sum of exponentials, without overflow
  variance    ///< sum of squared differences from the mean / (count - correction)
};

/// y = op over the axes in `axes` (bit i: axis i). x: f32|bf16|f16|f64, any strides. y: x's dtype and sizes, with 1 on
/// the reduced axes, row-major. `mean` (variance only): as y, in f32 (f64 for f64). `workspace`: f64
/// [reduce_workspace(...)] or absent.
struct ReduceArgs {
  static constexpr const char* kName = "reduce";
  View x, y, mean, workspace;
  ReduceOp op;
  unsigned axes;
  double correction;
};
Cost cost(const ReduceArgs& args);
void run(const Cpu& cpu, const ReduceArgs& args);
void run(const Cuda& cuda, const ReduceArgs& args);

/// dx = dy * d op / d x, pointwise, all of x's sizes after expansion. `y` is the result; for `variance` the mean (f32
/// or f64).
///   factor  mean: 1 / count; variance: 2 / (count - correction); else 1
/// max, min and norm_inf give dy to every element that attains y: divide dy by their number first.
struct ReduceBackwardArgs {
  static constexpr const char* kName = "reduce_backward";
  View x, y, dy, dx;
  ReduceOp op;
  double factor;
};
Cost cost(const ReduceBackwardArgs& args);
void run(const Cpu& cpu, const ReduceBackwardArgs& args);
void run(const Cuda& cuda, const ReduceBackwardArgs& args);

/// index = position of the first largest element along `axis`; NaN counts as largest. x: f32|bf16|f16|f64|i64|i32, any
/// strides; index: i64, x's sizes with 1 at `axis`, row-major.
struct ArgmaxArgs {
  static constexpr const char* kName = "argmax";
  View x, index;
  int axis;
};
Cost cost(const ArgmaxArgs& args);
void run(const Cpu& cpu, const ArgmaxArgs& args);
void run(const Cuda& cuda, const ArgmaxArgs& args);

/// f64 elements of workspace that a reduction of x over `axes` (bit i: axis i) may use, on any device.
std::int64_t reduce_workspace(const View& x, ReduceOp op, unsigned axes);

/// op over `axes` (negative ones count from the end; none = all) in a new row-major tensor of x's dtype.
///   x        f32|bf16|f16|f64, any shape and strides
///   keepdim  reduced axes stay, with size 1
/// Over no elements: sum and norms 0, logsumexp -infinity, mean and variance NaN. NaN propagates.
/// Throws ShapeError for axes out of range or named twice, and for max or min of no elements; DTypeError for other
/// dtypes.
Tensor reduce(ReduceOp op, const Tensor& x, const Shape& axes = {}, bool keepdim = false);

inline Tensor sum(const Tensor& x, const Shape& axes = {}, bool keepdim = false) {
  return reduce(ReduceOp::sum, x, axes, keepdim);
}
inline Tensor mean(const Tensor& x, const Shape& axes = {}, bool keepdim = false) {
  return reduce(ReduceOp::mean, x, axes, keepdim);
}
inline Tensor max(const Tensor& x, const Shape& axes = {}, bool keepdim = false) {
  return reduce(ReduceOp::max, x, axes, keepdim);
}
inline Tensor min(const Tensor& x, const Shape& axes = {}, bool keepdim = false) {
  return reduce(ReduceOp::min, x, axes, keepdim);
}
inline Tensor logsumexp(const Tensor& x, const Shape& axes = {}, bool keepdim = false) {
  return reduce(ReduceOp::logsumexp, x, axes, keepdim);
}

/// The p-norm over `axes`, p = 1, 2 or infinity (HUGE_VAL). Throws ConfigError for another p; else as `reduce`.
Tensor norm(const Tensor& x, double p = 2, const Shape& axes = {}, bool keepdim = false);
/// The ReduceOp of a p-norm. Throws as `norm`.
ReduceOp norm_op(double p);

/// Variance and mean of one pass.
struct Moments {
  Tensor variance;  ///< x's dtype
  Tensor mean;      ///< f32 (f64 for f64 operands)
};
/// Sum of squared differences from the mean / (count - correction), and the mean. NaN where count <= correction. Else
/// as `reduce`.
Moments moments(const Tensor& x, const Shape& axes = {}, double correction = 1, bool keepdim = false);
inline Tensor variance(const Tensor& x, const Shape& axes = {}, double correction = 1, bool keepdim = false) {
  return moments(x, axes, correction, keepdim).variance;
}

/// i64 positions of the first largest element along `axis`; NaN counts as largest.
/// Throws ShapeError for an axis out of range or of size 0 (unless the result is empty), DTypeError for bool, u8 and
/// 8-bit floats.
Tensor argmax(const Tensor& x, int axis, bool keepdim = false);

/// dy * d op / dx; see ReduceBackwardArgs. `y` and `dy` broadcast to x. Returns x's dtype and memory order.
Tensor reduce_backward(ReduceOp op, const Tensor& x, const Tensor& y, const Tensor& dy, double factor = 1);

/// Bit i set for each axis in `axes`; none = all. Throws ShapeError naming `op`.
unsigned axis_mask(const Shape& axes, int ndim, const char* op);

}  // namespace castor
