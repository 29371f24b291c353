// Calls to the CUDA runtime that end in a typed error, for the files that may name CUDA: backends and kernels.
#pragma once

#include <cstddef>

#include <cuda_runtime_api.h>

#include "core/device/device.h"

namespace castor {

/// Throws DeviceError unless `status` is cudaSuccess: what was tried, on which device, CUDA's words, what to do. Clears
/// the runtime's last error, so that the next call is not blamed for this one (a lost device stays lost).
///   what   the operation, as errors begin: "copy to host"
void check_cuda(cudaError_t status, const char* what, Device device);

/// Shared memory, in bytes, that a block of any kernel may ask for on `device` beside 1 KiB of its own.
std::size_t most_shared_bytes(const char* what, Device device);

/// The stream a kernel is launched on.
inline cudaStream_t stream_of(const Cuda& cuda) { return static_cast<cudaStream_t>(cuda.stream); }

}  // namespace castor
