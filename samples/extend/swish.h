// A user's own op, outside the library: Swish with a trained slope. It is added the way the library's ops are: the
// maths in one functor, a contract (what goes in and comes out, and what it costs), a kernel for each device, and a
// function of variables that knows the gradient.
//
// Delicate: `beta` is given to the kernel with stride 0 along the axes it is broadcast over, so one loop serves one
// beta a feature, one for all, or one an element. Source: Ramachandran, Zoph & Le 2017, "Searching for activation
// functions", arXiv:1710.05941, section 4.
#pragma once

#include "autograd/variable.h"
#include "core/base/math.h"
#include "core/device/dispatch.h"
#include "core/tensor/tensor.h"

namespace extend {

/// x sigmoid(beta x) and its two derivatives. T is float (also for f16 and bf16) or double.
struct Swish {
  template <class T>
  CASTOR_HOST_DEVICE static T value(T x, T beta) {
    return x * castor::math::sigmoid(beta * x);
  }
  template <class T>
  CASTOR_HOST_DEVICE static T slope_of_x(T x, T beta) {
    const T s = castor::math::sigmoid(beta * x);
    return s * (T(1) + beta * x * (T(1) - s));
  }
  template <class T>
  CASTOR_HOST_DEVICE static T slope_of_beta(T x, T beta) {
    const T s = castor::math::sigmoid(beta * x);
    return x * x * s * (T(1) - s);
  }
};

/// y = swish(x, beta); equal sizes after expansion, one dtype: f32|bf16|f16|f64, any strides.
struct SwishArgs {
  static constexpr const char* kName = "swish";
  castor::View x, beta, y;
};
castor::Cost cost(const SwishArgs& args);
void run(const castor::Cpu& cpu, const SwishArgs& args);

/// dx = dy * dy/dx, dbeta = dy * dy/dbeta before it is summed to beta's shape; either may be absent.
struct SwishBackwardArgs {
  static constexpr const char* kName = "swish_backward";
  castor::View x, beta, dy, dx, dbeta;
};
castor::Cost cost(const SwishBackwardArgs& args);
void run(const castor::Cpu& cpu, const SwishBackwardArgs& args);

/// x sigmoid(beta x), recorded.
///   x        f32|bf16|f16|f64 [...], any strides
///   beta     the same dtype, broadcasts to x's shape
///   returns  x's dtype and shape
/// Throws ShapeError if beta does not broadcast to x, DTypeError for other or differing dtypes, DeviceError.
castor::autograd::Variable swish(const castor::autograd::Variable& x, const castor::autograd::Variable& beta);

}  // namespace extend
