// Where the library takes no bias: c of f32 or f64 is filled with it first and the product added, which rounds no more
// often; in 16 bits that would round twice, so matrices with biases of their own are computed one by one.
#include "core/ops/gemm_cuda.h"

#include <algorithm>

#include "core/ops/cast.h"

namespace castor {
namespace {

/// c = bias in every row of every matrix.
void fill_with_bias(const Cuda& cuda, const CudaGemmProblem& problem, const void* bias, void* c) {
  View to;
  to.data = c;
  to.dtype = problem.result_dtype;
  to.ndim = 3;
  const std::int64_t sizes[] = {problem.batch, problem.m, problem.n}, strides[] = {problem.c_batch, problem.c_row, 1};
  std::copy(std::begin(sizes), std::end(sizes), to.size);
  std::copy(std::begin(strides), std::end(strides), to.stride);
  View from = to;
  from.data = const_cast<void*>(bias);
  from.stride[0] = problem.bias_batch;
  from.stride[1] = 0;
  run(cuda, CastArgs{from, to});
}

}  // namespace

void multiply(const Cuda& cuda, const char* op, CudaGemmProblem problem, const void* a, const void* b, const void* bias,
              void* c, void* workspace) {
  problem.a_alignment = gemm_alignment(a);
  problem.b_alignment = gemm_alignment(b);
  problem.c_alignment = std::min(gemm_alignment(c), gemm_alignment(bias));
  if (const CudaGemm* const gemm = find_cuda_gemm(cuda.device, problem); gemm != nullptr)
    return run_cuda_gemm(cuda, *gemm, a, b, bias, c, workspace);
  const std::size_t result_bytes = dtype_size(problem.result_dtype);
  if (problem.has_bias && result_bytes >= 4) {
    fill_with_bias(cuda, problem, bias, c);
    problem.has_bias = false;
    problem.accumulates = true;
    problem.bias_batch = 0;
    return multiply(cuda, op, problem, a, b, nullptr, c, workspace);
  }
  if (problem.has_bias && problem.batch > 1) {
    CudaGemmProblem single = problem;
    single.batch = 1;
    single.a_batch = single.b_batch = single.c_batch = single.bias_batch = 0;
    const auto at = [](const void* data, std::int64_t offset, std::size_t bytes) {
      return static_cast<const char*>(data) + offset * static_cast<std::int64_t>(bytes);
    };
    const std::size_t bytes = dtype_size(problem.dtype);
    for (std::int64_t i = 0; i < problem.batch; ++i) {
      multiply(cuda, op, single, at(a, i * problem.a_batch, bytes), at(b, i * problem.b_batch, bytes),
               at(bias, i * problem.bias_batch, result_bytes),
               const_cast<char*>(at(c, i * problem.c_batch, result_bytes)), workspace);
    }
    return;
  }
  throw InternalError(cat(op, ": cuBLASLt proposes no algorithm for ", problem.dtype, " to ", problem.result_dtype,
                          ", m ", problem.m, ", n ", problem.n, ", k ", problem.k, ", batch ", problem.batch,
                          problem.has_bias ? ", with a bias" : "", "; use a newer cuBLAS"));
}

}  // namespace castor
