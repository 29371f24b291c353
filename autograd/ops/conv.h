// Differentiable convolution. Shapes, layouts, dtypes and errors are those of core/ops/conv.h.
#pragma once

#include "autograd/variable.h"
#include "core/ops/conv.h"

namespace castor::autograd {

/// activation(conv(x, weight) + bias); see castor::conv2d. `bias` may be undefined. One node: the activation's gradient
/// and the bias's are one pass over memory.
Variable conv2d(const Variable& x, const Variable& weight, const Variable& bias = {}, const ConvGeometry& geometry = {},
                Activation activation = Activation::none);

}  // namespace castor::autograd
