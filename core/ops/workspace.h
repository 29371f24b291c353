// Scratch memory of kernels, taken from the device's allocator by the contract and counted as workspace, so that a step
// on a meta device sees the same bytes as a real one.
//
// A family whose kernels need scratch declares, beside each `run`, a `std::size_t workspace_bytes(const Cpu&, const
// Args&)` (and one for Cuda). Sizes depend on shapes and strides only, never on values or addresses.
#pragma once

#include <cstddef>

#include "build_config.h"
#include "core/device/caching_allocator.h"
#include "core/tensor/tensor.h"

namespace castor {

/// `bytes` bytes on `device` as u8[bytes], in category workspace; undefined for 0 bytes.
inline Tensor make_workspace(std::size_t bytes, Device device) {
  if (bytes == 0) return {};
  const CategoryScope scope(Category::workspace);
  return Tensor::empty({static_cast<std::int64_t>(bytes)}, DType::u8, device);
}

/// The scratch that the kernels of `device`, or of what a meta device stands for, ask for `args`. A build without the
/// kernels of that target cannot know and says 0.
template <class Args>
Tensor workspace_for(Device device, const Args& args) {
  std::size_t bytes = 0;
  if (kernel_type(device) == DeviceType::cpu) {
    bytes = workspace_bytes(Cpu{device}, args);
  } else if constexpr (kHasCuda) {
    bytes = workspace_bytes(Cuda{device}, args);
  }
  return make_workspace(bytes, device);
}

}  // namespace castor
