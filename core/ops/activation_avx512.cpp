// The activation loops with 16 lanes. Compiled for x86-64-v4 and called only where the processor has it
// (core/base/cpu_isa.h).
#include "core/ops/activation_kernel.h"

namespace castor {

void activate_avx512(DType dtype, Activation activation, const void* x, void* y, std::int64_t count) {
  activate_any(dtype, activation, x, y, count);
}

void activation_backward_avx512(const ActivationBlock& block) { backward_any(block); }

}  // namespace castor
