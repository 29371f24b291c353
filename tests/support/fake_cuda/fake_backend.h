// A fake second device: `cuda:0` whose memory is host memory of its own and whose kernels are the CPU's. It compiles
// and runs everything through the seam that CUDA uses (backend, allocator, dispatch, tags), on machines without a GPU.
//
// Delicate: it can only show mistakes if it is strict, so fresh memory is filled with NaN patterns, and every kernel
// checks that it was reached with the fake's own stream.
#pragma once

#include "core/device/device.h"

namespace castor {

/// The device that the fake backend answers for.
inline constexpr Device kFakeCuda{DeviceType::cuda, 0};

/// Installs the fake backend; call once, before its first use.
void install_fake_cuda();

/// Kernels launched on the fake device so far.
long fake_cuda_launches();

}  // namespace castor
