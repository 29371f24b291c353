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

}  // namespace castor::autograd
