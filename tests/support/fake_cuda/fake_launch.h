// Between the fake backend and the fake kernels only.
#pragma once

#include <functional>

#include "core/device/device.h"

namespace castor {

/// Checks and counts a launch on the fake device; returns the tag under which its kernel really runs.
/// Throws DeviceError if the tag is not the fake's own, or while work is recorded: a kernel that may be must say so.
Cpu fake_launch(const Cuda& cuda);

/// The same for a kernel that may be recorded: runs `kernel`, which owns what its arguments point to, now or in each
/// run of the recording.
void launch_or_record(const Cuda& cuda, std::function<void(const Cpu&)> kernel);

}  // namespace castor
