// Between the fake backend and the fake kernels only.
#pragma once

#include "core/device/device.h"

namespace castor {

/// Checks and counts a launch on the fake device; returns the tag under which its kernel really runs.
/// Throws DeviceError if the tag is not the fake's own.
Cpu fake_launch(const Cuda& cuda);

}  // namespace castor
