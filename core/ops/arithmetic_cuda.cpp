// A GPU's name and its library's version.
#include "core/device/cuda_gemm.h"
#include "core/device/cuda_runtime.h"
#include "core/ops/arithmetic.h"

namespace castor {

Arithmetic arithmetic_of(const Cuda& cuda) {
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, cuda.device.index), "ask for the name", cuda.device);
  return {properties.name, cuda_gemm_library()};
}

}  // namespace castor
