// The f64 product, by Eigen: oneDNN has none. It serves references and gradient checks, so it is kept out of the way of
// the fast paths (and of their compile time).
#pragma once

#include <cstdint>

namespace castor {

/// One operand of gemm_f64: strides in elements, one of them 1 or along a size of 1.
struct MatrixF64 {
  const double* data;
  std::int64_t row_stride, column_stride;
};

/// c = a b with a [m, k], b [k, n] and c [m, n], rows of c `c_row_stride` elements apart. No size is 0.
void gemm_f64(std::int64_t m, std::int64_t n, std::int64_t k, MatrixF64 a, MatrixF64 b, double* c,
              std::int64_t c_row_stride);

}  // namespace castor
