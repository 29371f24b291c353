// The derivatives of reductions, one element at a time, read by the kernels of every device. Those of max, min and
// norm_inf compare with the result, so both must be in the dtype the result was rounded to.
#pragma once

#include "core/base/math.h"
#include "core/ops/reduce.h"

namespace castor::reduction {

/// d op / dx at one element, without the factor. `y` is the result; for `variance` the mean.
template <ReduceOp kOp, class C>
CASTOR_HOST_DEVICE C slope(C x, C y) {
  if constexpr (kOp == ReduceOp::max || kOp == ReduceOp::min) return x == y ? C(1) : C(0);
  if constexpr (kOp == ReduceOp::norm1) return x > C(0) ? C(1) : x < C(0) ? C(-1) : C(0);
  if constexpr (kOp == ReduceOp::norm2) return y == C(0) ? C(0) : x / y;
  if constexpr (kOp == ReduceOp::norm_inf) return x == y ? C(1) : -x == y ? C(-1) : C(0);
  if constexpr (kOp == ReduceOp::logsumexp) return x == y ? C(1) : math::exp(x - y);
  if constexpr (kOp == ReduceOp::variance) return x - y;
  return C(1);
}

}  // namespace castor::reduction
