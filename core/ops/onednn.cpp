// The engine, the threads' streams, and what this processor can do.
#include "core/ops/onednn.h"

#include <dnnl.hpp>

#include "core/base/error.h"
#include "core/ops/onednn_runtime.h"

namespace castor::onednn {

const dnnl::engine& engine() {
  static const auto* const instance = new dnnl::engine(dnnl::engine::kind::cpu, 0);
  return *instance;
}

dnnl::stream& stream() {
  thread_local dnnl::stream instance(engine());
  return instance;
}

bool computes_in(DType dtype) {
  if (dtype == DType::f32) return true;
  if (dtype != DType::bf16) return false;  // f16 needs a later oneDNN
  const auto isa = dnnl::get_effective_cpu_isa();
  return isa == dnnl::cpu_isa::avx512_core_bf16 || isa == dnnl::cpu_isa::avx512_core_amx;
}

std::string version() {
  const dnnl_version_t* const loaded = dnnl_version();
  return cat("oneDNN ", loaded->major, ".", loaded->minor, ".", loaded->patch);
}

std::string_view instruction_set() {
  switch (dnnl::get_effective_cpu_isa()) {
    case dnnl::cpu_isa::sse41:
      return "sse41";
    case dnnl::cpu_isa::avx:
      return "avx";
    case dnnl::cpu_isa::avx2:
      return "avx2";
    case dnnl::cpu_isa::avx2_vnni:
      return "avx2_vnni";
    case dnnl::cpu_isa::avx512_core:
      return "avx512_core";
    case dnnl::cpu_isa::avx512_core_vnni:
      return "avx512_core_vnni";
    case dnnl::cpu_isa::avx512_core_bf16:
      return "avx512_core_bf16";
    case dnnl::cpu_isa::avx512_core_amx:
      return "avx512_core_amx";
    default:
      return "other";
  }
}

}  // namespace castor::onednn
