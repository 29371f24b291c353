// The 8-bit product on CUDA, by cuBLASLt. Its kernels want both operands along the sum (its layout "TN") and sizes that
// are multiples of 16; results of f32 with a bias they do not know.
#include <algorithm>

#include "core/device/cuda_gemm.h"
#include "core/ops/fp8_expanded.h"

namespace castor {
namespace {

CudaGemmProblem describe(const Fp8MatmulArgs& args) {
  CudaGemmProblem problem;
  problem.dtype = args.a.dtype;
  problem.result_dtype = args.c.dtype;
  problem.has_bias = args.bias.defined();
  problem.m = args.c.size[0];
  problem.n = args.c.size[1];
  problem.k = args.a.size[1];
  problem.a_row = problem.k;
  problem.a_column = 1;
  problem.b_row = 1;
  problem.b_column = problem.k;
  problem.c_row = problem.n;
  problem.a_alignment = gemm_alignment(args.a.data);
  problem.b_alignment = gemm_alignment(args.b.data);
  problem.c_alignment = std::min(gemm_alignment(args.c.data), gemm_alignment(args.bias.data));
  return problem;
}

/// The product by 8-bit units; null where there is none. What a meta device stands for has them.
bool suits_units(const Cuda& cuda, const Fp8MatmulArgs& args) {
  constexpr std::int64_t kStep = 16;
  const bool is_along_sum = args.a.is_contiguous() && args.b.is_contiguous();
  const bool fits = args.c.size[0] > 0 && args.a.size[1] > 0 && args.c.size[1] > 0 && args.c.size[1] % kStep == 0 &&
                    args.a.size[1] % kStep == 0 && dtype_size(args.c.dtype) == 2;
  if (!is_along_sum || !fits) return false;
  return cuda.device.is_meta() ||
         (has_cuda_fp8_units(cuda.device) && find_cuda_gemm(cuda.device, describe(args)) != nullptr);
}

}  // namespace

std::size_t workspace_bytes(const Cuda& cuda, const Fp8MatmulArgs& args) {
  return suits_units(cuda, args) ? kCudaGemmWorkspace : Fp8Expanded(cuda, args).bytes();
}

void run(const Cuda& cuda, const Fp8MatmulArgs& args) {
  if (!suits_units(cuda, args)) return Fp8Expanded(cuda, args).run_in_scratch();
  run_cuda_gemm(cuda, *find_cuda_gemm(cuda.device, describe(args)), args.a.data, args.b.data, args.bias.data,
                args.c.data, args.workspace.data, {args.a_scale.data, args.b_scale.data});
}

}  // namespace castor
