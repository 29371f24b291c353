// Which instruction set the hand-blocked kernels use. Everything is compiled for x86-64-v3 (AVX2 and FMA); a few named
// files
// (*_avx512.cpp) hold a second copy of a kernel for x86-64-v4, chosen here at run time.
//
// Delicate: a file compiled for AVX-512 must not emit functions that other files share (inline functions, templates),
// or the linker might keep its copy for machines that cannot run it. Such files include headers of macros-free,
// always-inlined or file-local code only.
#pragma once

#include <cstdint>
#include <string_view>

namespace castor {

/// Instruction sets that kernels are built for, from narrow to wide.
enum class CpuIsa : std::uint8_t { avx2, avx512 };

/// What this processor offers (asked once).
CpuIsa detected_cpu_isa();

/// What kernels use now: the smaller of what is detected and the limit. Part of the numerics key.
CpuIsa cpu_isa();

/// No kernel goes beyond `limit` from now on, in the whole process. Returns the previous limit.
CpuIsa limit_cpu_isa(CpuIsa limit);

/// "avx2" or "avx512".
std::string_view cpu_isa_name(CpuIsa isa);

}  // namespace castor
