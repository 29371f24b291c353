// Division by a number that many threads divide by: a multiplication and a shift instead of some twenty instructions.
// GPU kernels turn a flat index into one index an axis with it.
//
// Source: Granlund & Montgomery, "Division by invariant integers using multiplication", PLDI 1994, section 4.
#pragma once

#include <cstdint>

#include "core/base/host_device.h"

namespace castor {

/// Divides dividends below 2^31 by a divisor in [1, 2^31), exactly.
struct FastDivisor {
  std::uint32_t divisor = 1;
  std::uint32_t magic = 1;  ///< floor(2^32 (2^shift - divisor) / divisor) + 1
  std::uint32_t shift = 0;  ///< ceil(log2(divisor))

  FastDivisor() = default;
  explicit FastDivisor(std::uint32_t by) : divisor(by) {
    while ((std::uint64_t{1} << shift) < by) ++shift;
    magic = static_cast<std::uint32_t>((((std::uint64_t{1} << shift) - by) << 32) / by + 1);
  }

  CASTOR_HOST_DEVICE std::uint32_t quotient(std::uint32_t dividend) const {
    const std::uint32_t high = static_cast<std::uint32_t>((std::uint64_t{dividend} * magic) >> 32);
    return (high + dividend) >> shift;
  }
};

}  // namespace castor
