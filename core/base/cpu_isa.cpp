// Detection by cpuid, through the compiler's run-time support, which also asks whether the system saves the wide
// registers.
#include "core/base/cpu_isa.h"

#include <algorithm>
#include <atomic>

namespace castor {
namespace {

std::atomic<CpuIsa>& isa_limit() {
  static std::atomic<CpuIsa> limit{CpuIsa::avx512};
  return limit;
}

}  // namespace

CpuIsa detected_cpu_isa() {
  static const CpuIsa detected = __builtin_cpu_supports("x86-64-v4") ? CpuIsa::avx512 : CpuIsa::avx2;
  return detected;
}

CpuIsa cpu_isa() { return std::min(detected_cpu_isa(), isa_limit().load(std::memory_order_relaxed)); }

CpuIsa limit_cpu_isa(CpuIsa limit) { return isa_limit().exchange(limit); }

std::string_view cpu_isa_name(CpuIsa isa) { return isa == CpuIsa::avx512 ? "avx512" : "avx2"; }

}  // namespace castor
