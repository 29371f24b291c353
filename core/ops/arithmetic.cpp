// The CPU's, and the way to the GPU's (arithmetic_cuda.cpp).
#include "core/ops/arithmetic.h"

#include "build_config.h"
#include "core/ops/onednn.h"

namespace castor {

Arithmetic arithmetic_of(Device device) {
  if constexpr (kHasCuda) {
    if (device.is_cuda()) return arithmetic_of(Cuda{device});
  }
  return {"cpu", onednn::version()};
}

}  // namespace castor
