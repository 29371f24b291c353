// What a kernel that already has a tensor's elements in registers needs to find the tensor's fp8 scale on the way.
//
// Delicate: the first of the two places first holds the bits of the largest magnitude, and the second the number of
// blocks that are done; both start as zero (start_fp8_scale). The last block turns them into the scale. Maxima and
// counts of integers do not depend on the order of blocks, so the scale does not.
#pragma once

#include "core/device/cuda_runtime.h"
#include "core/ops/fp8.h"

namespace castor::cuda {

/// Before the kernel, on its stream.
inline void start_fp8_scale(const Cuda& cuda, const char* op, void* scale) {
  check_cuda(cudaMemsetAsync(scale, 0, 2 * sizeof(float), stream_of(cuda)), op, cuda.device);
}

/// Ends such a kernel: every thread of every block of the grid comes here once, with the largest magnitude_bits that it
/// met, 0 if none.
__device__ inline void finish_fp8_scale(std::uint32_t here, float* scale, int top_exponent) {
  __shared__ std::uint32_t parts[32];
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  here = __reduce_max_sync(0xFFFFFFFFu, here);
  if (thread % 32 == 0) parts[thread / 32] = here;
  __syncthreads();
  if (thread != 0) return;
  for (unsigned warp = 1; warp < threads / 32; ++warp) here = here > parts[warp] ? here : parts[warp];
  auto* const largest = reinterpret_cast<std::uint32_t*>(scale);
  if (here != 0) atomicMax(largest, here);
  __threadfence();
  if (atomicAdd(largest + 1, 1u) != gridDim.x * gridDim.y * gridDim.z - 1) return;
  __threadfence();
  const float found = fp8_scale(atomicMax(largest, 0u), top_exponent);
  scale[0] = 1.0f / found;
  scale[1] = found;
}

}  // namespace castor::cuda
