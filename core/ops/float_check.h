// The dtypes that ops compute in, checked in one place.
#pragma once

#include "core/tensor/tensor.h"

namespace castor {

/// Throws DTypeError naming `op` unless x is f32, bf16, f16 or f64: 8-bit floats are stored and multiplied only.
inline void check_float(const char* op, const Tensor& x) {
  if (!is_floating(x.dtype()) || dtype_size(x.dtype()) == 1)
    throw DTypeError(cat(op, ": expected f32, bf16, f16 or f64, got ", x, "; cast it first"));
}

}  // namespace castor
