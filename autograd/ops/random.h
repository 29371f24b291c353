// Differentiable ops on counter-based random numbers.
#pragma once

#include "autograd/variable.h"
#include "core/base/philox.h"

namespace castor::autograd {

/// x with elements dropped with `probability` and the others scaled by 1 / (1 - probability); see castor::dropout. x
/// itself where probability is 0. No mask is kept: the gradient draws it again from `key`.
Variable dropout(const Variable& x, RandomKey key, double probability);

}  // namespace castor::autograd
