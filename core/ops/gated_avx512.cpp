// The loops of gated linear units with 16 lanes. Compiled for x86-64-v4 and called only where the processor has it
// (core/base/cpu_isa.h).
#include "core/ops/gated_kernel.h"

namespace castor {

void gated_avx512(const GatedBlock& block) { gated_any(block); }

}  // namespace castor
