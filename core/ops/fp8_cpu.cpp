// The 8-bit conversions on the CPU: an emulation, since no product here takes 8-bit operands.
#include <algorithm>
#include <atomic>

#include "core/base/parallel.h"
#include "core/ops/fp8.h"

namespace castor {
namespace {

constexpr std::int64_t kGrain = 1 << 14;  // elements a thread

template <class F>
void visit_fp8(DType dtype, F&& f) {
  if (dtype == DType::f8e4m3) return f(TypeTag<Float8E4M3>{});
  f(TypeTag<Float8E5M2>{});
}

}  // namespace

void run(const Cpu&, const Fp8ScaleArgs& args) {
  std::atomic<std::uint32_t> largest = 0;
  visit_training_float(args.x.dtype, Fp8ScaleArgs::kName, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* x = args.x.as<T>();
    parallel_for(args.x.numel(), kGrain, [&](std::int64_t begin, std::int64_t end) {
      std::uint32_t here = 0;
      for (std::int64_t i = begin; i < end; ++i) here = std::max(here, magnitude_bits(load(x[i])));
      std::uint32_t seen = largest.load();
      while (here > seen && !largest.compare_exchange_weak(seen, here)) {
      }
    });
  });
  float* const scale = args.scale.as<float>();
  scale[1] = fp8_scale(largest.load(), fp8_top_exponent(args.format));
  scale[0] = 1.0f / scale[1];
}

void run(const Cpu&, const Fp8RoundArgs& args) {
  const float scale = args.scale.as<float>()[1];
  visit_training_float(args.x.dtype, Fp8RoundArgs::kName, [&](auto from) {
    using From = typename decltype(from)::type;
    visit_fp8(args.format(), [&](auto to) {
      using To = typename decltype(to)::type;
      const From* x = args.x.as<From>();
      if (args.y.defined()) {
        To* y = args.y.as<To>();
        parallel_for(args.x.numel(), kGrain, [&](std::int64_t begin, std::int64_t end) {
#pragma GCC ivdep
          for (std::int64_t i = begin; i < end; ++i) y[i] = fp8_round<To>(load(x[i]), scale);
        });
      }
      if (!args.transposed.defined()) return;
      const std::int64_t rows = args.x.size[0], n = args.x.size[1];
      To* const transposed = args.transposed.as<To>();
      parallel_for(n, std::max<std::int64_t>(1, kGrain / std::max<std::int64_t>(rows, 1)),
                   [&](std::int64_t begin, std::int64_t end) {
                     for (std::int64_t j = begin; j < end; ++j) {
                       for (std::int64_t i = 0; i < rows; ++i)
                         transposed[j * rows + i] = fp8_round<To>(load(x[i * n + j]), scale);
                     }
                   });
    });
  });
}

void run(const Cpu&, const Fp8ExpandArgs& args) {
  const float inverse = args.scale.as<float>()[0];
  visit_fp8(args.x.dtype, [&](auto from) {
    using From = typename decltype(from)::type;
    visit_training_float(args.y.dtype, Fp8ExpandArgs::kName, [&](auto to) {
      using To = typename decltype(to)::type;
      const From* x = args.x.as<From>();
      To* y = args.y.as<To>();
      parallel_for(args.x.numel(), kGrain, [&](std::int64_t begin, std::int64_t end) {
#pragma GCC ivdep
        for (std::int64_t i = begin; i < end; ++i) y[i] = store<To>(load(x[i]) * inverse);
      });
    });
  });
}

}  // namespace castor
