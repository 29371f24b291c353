// What the last bits of a device's results depend on beside this program: for a run's numerics key and its log.
#pragma once

#include <string>

#include "core/device/device.h"

namespace castor {

struct Arithmetic {
  std::string processor;  ///< "NVIDIA H200"; "cpu", whose instruction set is core/base/cpu_isa.h's
  std::string library;    ///< that multiplies matrices: "cuBLASLt 13.0.2", "oneDNN 2.6.3"
};

/// Of the CPU or a GPU. Throws DeviceError where the device cannot be asked.
Arithmetic arithmetic_of(Device device);
Arithmetic arithmetic_of(const Cuda& cuda);

}  // namespace castor
