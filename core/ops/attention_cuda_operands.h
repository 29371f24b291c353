// What attention on tensor cores asks of a GPU and of operands, our own and cuDNN's alike.
#pragma once

#include "core/device/cuda_runtime.h"
#include "core/tensor/tensor.h"

namespace castor::cuda {

/// Whether rows of 16 bits begin at multiples of 16 bytes from the first one.
inline bool has_whole_strides(const View& x) {
  for (int i = 0; i < 3; ++i) {
    if (x.size[i] > 1 && (x.stride[i] <= 0 || x.stride[i] % 8 != 0)) return false;
  }
  return true;
}

/// Compute capability 9.0. Throws DeviceError.
inline bool is_hopper(Device device) {
  int major = 0, minor = 0;
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device.index), "attention", device);
  check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device.index), "attention", device);
  return major == 9 && minor == 0;
}

}  // namespace castor::cuda
