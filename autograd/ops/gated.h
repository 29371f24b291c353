// Differentiable gated linear units.
#pragma once

#include "autograd/variable.h"
#include "core/ops/gated.h"

namespace castor::autograd {

/// activation(gate) * up of packed [..., 2 n]; see castor::gated. Keeps the input alone; the gradient is one pass, too.
Variable gated(const Variable& packed, Activation activation);

}  // namespace castor::autograd
