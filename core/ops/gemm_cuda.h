// One product on CUDA with whatever bias: between the families that multiply (matmul, conv) and the library's wrapper
// (core/device/cuda_gemm.h), which has a kernel for most products, but not for every one with a bias.
#pragma once

#include "core/device/cuda_gemm.h"

namespace castor {

/// Computes `problem` (its alignments are filled in here) with one rounding of each result.
///   bias       [n] for each batch, bias_batch apart; null unless has_bias
///   workspace  kCudaGemmWorkspace bytes
/// Throws InternalError, naming `op`, where the library has no algorithm; DeviceError.
void multiply(const Cuda& cuda, const char* op, CudaGemmProblem problem, const void* a, const void* b, const void* bias,
              void* c, void* workspace);

}  // namespace castor
