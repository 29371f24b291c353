// The 8-bit product on the CPU, which has no units for it.
#include "core/ops/fp8_expanded.h"

namespace castor {

std::size_t workspace_bytes(const Cpu& cpu, const Fp8MatmulArgs& args) { return Fp8Expanded(cpu, args).bytes(); }

void run(const Cpu& cpu, const Fp8MatmulArgs& args) { Fp8Expanded(cpu, args).run_in_scratch(); }

}  // namespace castor
