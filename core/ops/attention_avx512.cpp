// The attention kernels with 16 lanes. Compiled for x86-64-v4 and called only where the processor has it
// (core/base/cpu_isa.h); nothing here may be a function that other files share.
#include "core/ops/attention_kernel.h"

namespace castor {

void attention_forward_avx512(const AttentionProblem& problem, std::int64_t begin, std::int64_t end, float* scratch) {
  attention_forward<16>(problem, begin, end, scratch);
}

void attention_backward_avx512(const AttentionProblem& problem, std::int64_t begin, std::int64_t end, float* scratch) {
  attention_backward<16>(problem, begin, end, scratch);
}

}  // namespace castor
