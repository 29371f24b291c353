// Differentiable reductions. Axes, shapes, dtypes and errors are those of core/ops/reduce.h: no axes = all, negative
// ones count from the end.
#pragma once

#include "autograd/variable.h"
#include "core/ops/reduce.h"

namespace castor::autograd {

/// op over `axes`; for `variance` see below. Where several elements attain a maximum or minimum they share its gradient
/// equally.
Variable reduce(ReduceOp op, const Variable& x, const Shape& axes = {}, bool keepdim = false);

inline Variable sum(const Variable& x, const Shape& axes = {}, bool keepdim = false) {
  return reduce(ReduceOp::sum, x, axes, keepdim);
}
inline Variable mean(const Variable& x, const Shape& axes = {}, bool keepdim = false) {
  return reduce(ReduceOp::mean, x, axes, keepdim);
}
inline Variable max(const Variable& x, const Shape& axes = {}, bool keepdim = false) {
  return reduce(ReduceOp::max, x, axes, keepdim);
}
inline Variable min(const Variable& x, const Shape& axes = {}, bool keepdim = false) {
  return reduce(ReduceOp::min, x, axes, keepdim);
}
inline Variable logsumexp(const Variable& x, const Shape& axes = {}, bool keepdim = false) {
  return reduce(ReduceOp::logsumexp, x, axes, keepdim);
}

/// The p-norm, p = 1, 2 or infinity (HUGE_VAL). The gradient of the 2-norm at 0 is 0.
Variable norm(const Variable& x, double p = 2, const Shape& axes = {}, bool keepdim = false);

/// Sum of squared differences from the mean / (count - correction).
Variable variance(const Variable& x, const Shape& axes = {}, double correction = 1, bool keepdim = false);

}  // namespace castor::autograd
