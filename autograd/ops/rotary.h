// Differentiable rotary position embedding.
#pragma once

#include "autograd/variable.h"
#include "core/ops/rotary.h"

namespace castor::autograd {

/// x [B,T,H,D] turned by its positions; see castor::rotary. The gradient turns back.
Variable rotary(const Variable& x, const RotaryTable& table, std::int64_t offset = 0);

}  // namespace castor::autograd
