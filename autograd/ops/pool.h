// Differentiable pooling. Shapes, layouts, dtypes and errors are those of core/ops/pool.h.
#pragma once

#include "autograd/variable.h"
#include "core/ops/pool.h"

namespace castor::autograd {

/// See castor::max_pool2d.
Variable max_pool2d(const Variable& x, const PoolGeometry& geometry);
/// See castor::avg_pool2d.
Variable avg_pool2d(const Variable& x, const PoolGeometry& geometry);
/// See castor::adaptive_max_pool2d.
Variable adaptive_max_pool2d(const Variable& x, const Shape& size);
/// See castor::adaptive_avg_pool2d.
Variable adaptive_avg_pool2d(const Variable& x, const Shape& size);

}  // namespace castor::autograd
