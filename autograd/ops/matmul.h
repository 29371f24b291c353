// Differentiable matrix products. Shapes, dtypes and errors are those of core/ops/matmul.h.
#pragma once

#include "autograd/variable.h"
#include "core/ops/matmul.h"

namespace castor::autograd {

/// The matrix product over the last two axes with broadcast leading axes; see castor::matmul.
Variable matmul(const Variable& a, const Variable& b);

/// activation(x weight^T + bias); see castor::linear. `bias` may be undefined. One node: the activation's gradient and
/// the bias's are one pass over memory.
Variable linear(const Variable& x, const Variable& weight, const Variable& bias = {},
                Activation activation = Activation::none);

/// `linear` whose products multiply 8-bit numbers (core/ops/fp8.h): x and weight are rounded to e4m3, the gradient that
/// enters its two products to e5m2, each with a scale from this tensor alone. The bias, its gradient, the activation
/// and the results are as in `linear`; the rounding itself has slope 1. x and weight: f32|bf16|f16. Backward keeps x in
/// 8 bits.
Variable linear_fp8(const Variable& x, const Variable& weight, const Variable& bias = {},
                    Activation activation = Activation::none);

/// Weight and bias of a linear layer; the bias may be undefined.
struct LinearParameters {
  Variable weight, bias;
};

/// linear_fp8(gated(linear_fp8(x, fc)), proj) as one node, with the same bits: what lies between the layers is rounded
/// with scales that were found while it was made. Throws as its parts.
Variable gated_feed_forward_fp8(const Variable& x, const LinearParameters& fc, Activation activation,
                                const LinearParameters& proj);

/// linear(hidden(linear(x, fc)), proj) as one node that keeps the activation's input and not its result: backward
/// computes that again, with the same bits, in its pass over the gradient. Throws as castor::linear; InternalError for
/// activation none.
Variable feed_forward(const Variable& x, const LinearParameters& fc, HiddenActivation hidden,
                      const LinearParameters& proj);

}  // namespace castor::autograd
