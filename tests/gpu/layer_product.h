// A linear layer's products in bf16 as core/device/cuda_gemm.h takes them, for programs that measure or repeat them.
#pragma once

#include "core/device/cuda_gemm.h"

namespace castor::test {

/// c [m, n] = a [m, k] b [k, n], all row-major but for operands that are transposed, which lie column by column.
inline CudaGemmProblem layer_product(std::int64_t m, std::int64_t n, std::int64_t k, bool a_is_transposed,
                                     bool b_is_transposed) {
  CudaGemmProblem problem;
  problem.dtype = problem.result_dtype = DType::bf16;
  problem.m = m;
  problem.n = n;
  problem.k = k;
  problem.a_row = a_is_transposed ? 1 : k;
  problem.a_column = a_is_transposed ? m : 1;
  problem.b_row = b_is_transposed ? 1 : n;
  problem.b_column = b_is_transposed ? k : 1;
  problem.c_row = n;
  return problem;
}

}  // namespace castor::test
