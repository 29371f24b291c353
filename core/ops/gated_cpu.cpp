// Threads around the loops of gated linear units.
#include <algorithm>

#include "core/base/cpu_isa.h"
#include "core/base/parallel.h"
#include "core/ops/fp8.h"
#include "core/ops/gated_kernel.h"

namespace castor {
namespace {

constexpr std::int64_t kGrain = 16384;  // elements that are worth a thread

void run_block(const GatedBlock& block) {
  if (block.dtype == DType::f64) return gated_elements<double>(block);
  cpu_isa() == CpuIsa::avx512 ? gated_avx512(block) : gated_any(block);
}

/// All rows; dy and dpacked may be absent, or y.
void run_rows(const View& packed, const View& dy, const View& y, const View& dpacked, Activation activation) {
  const std::int64_t n = packed.size[1] / 2;
  const auto row_bytes = static_cast<std::int64_t>(dtype_size(packed.dtype)) * n;
  parallel_for(packed.size[0], std::max<std::int64_t>(1, kGrain / n), [&](std::int64_t begin, std::int64_t end) {
    const auto at = [&](const View& view, std::int64_t halves) {
      return view.defined() ? view.as<char>() + begin * halves * row_bytes : nullptr;
    };
    run_block({packed.dtype, activation, at(packed, 2), at(dy, 1), at(y, 1), at(dpacked, 2), end - begin, n});
  });
}

}  // namespace

void run(const Cpu& cpu, const GatedArgs& args) {
  run_rows(args.packed, {}, args.y, {}, args.activation);
  if (args.scale.defined()) run(cpu, Fp8ScaleArgs{args.y, args.scale, DType::f8e4m3});
}

void run(const Cpu& cpu, const GatedBackwardArgs& args) {
  run_rows(args.packed, args.dy, args.y, args.dpacked, args.activation);
  if (args.scale.defined()) run(cpu, Fp8ScaleArgs{args.dpacked, args.scale, DType::f8e5m2});
}

}  // namespace castor
