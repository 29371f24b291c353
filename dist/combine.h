// The sum over ranks: terms added one by one in the order given, so that the bits depend on nothing else.
#pragma once

#include <cstdint>
#include <span>

#include "core/base/dtype.h"
#include "dist/comm.h"

namespace castor::dist {

/// out[i] = terms[0][i] + terms[1][i] + ..., from the left, or their mean, maximum or minimum (NaN wins). Small floats
/// are added in f32 and rounded once at the end; integers wrap; bool takes no sum, only floats have a mean.
///   terms       arrays of `dtype` and `count` elements, at least one; `out` may be one of them
///   out_dtype   `dtype`, or f32 where `dtype` is a small float
///   accumulate  `out` is the term before the first
void combine(ReduceOp op, DType dtype, std::span<const void* const> terms, std::int64_t count, void* out,
             DType out_dtype, bool accumulate);

}  // namespace castor::dist
