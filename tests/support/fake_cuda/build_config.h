// What the generated header says in a build with CUDA, for the copy of core's contracts that the fake second device
// links: dispatch then calls run(const Cuda&, ...), which fake_kernels.cpp defines.
#pragma once

namespace castor {
inline constexpr bool kHasCuda = true;
inline constexpr bool kHasNccl = false;
inline constexpr const char* kVersion = "0.1.0";
}  // namespace castor
