// Loops of gated linear units. Compiled once for each instruction set (gated_cpu.cpp, gated_avx512.cpp), because
// activations are bound by arithmetic.
//
// Delicate: everything here is file-local (see core/base/cpu_isa.h). The functors spell out their fused multiply-adds,
// so all copies give equal bits.
#pragma once

#include "core/ops/activation_kernel.h"
#include "core/ops/gated.h"

namespace castor {
namespace {

template <class F, class T>
void gated_row(const T* gate, const T* up, T* y, std::int64_t n) {
  using S = decltype(load(T{}));
#pragma GCC ivdep
  for (std::int64_t j = 0; j < n; ++j) y[j] = store<T>(F::value(load(gate[j]), S(0), S(0)) * load(up[j]));
}

template <class F, class T>
void gated_backward_row(const T* dy, const T* gate, const T* up, T* dgate, T* dup, std::int64_t n) {
  using S = decltype(load(T{}));
#pragma GCC ivdep
  for (std::int64_t j = 0; j < n; ++j) {
    const S x = load(gate[j]), gradient = load(dy[j]);
    dgate[j] = store<T>(gradient * load(up[j]) * F::slope(x, x, S(0), S(0)));
    dup[j] = store<T>(gradient * F::value(x, S(0), S(0)));
  }
}

template <class T>
void gated_elements(const GatedBlock& block) {
  const std::int64_t n = block.n;
  const T *packed = static_cast<const T*>(block.packed), *dy = static_cast<const T*>(block.dy);
  T *const y = static_cast<T*>(block.y), *const dpacked = static_cast<T*>(block.dpacked);
  visit_activation(block.activation, [&](auto f) {
    using F = decltype(f);
    for (std::int64_t row = 0; row < block.rows; ++row) {
      const T *const gate = packed + row * 2 * n, *const up = gate + n;
      if (y != nullptr) gated_row<F>(gate, up, y + row * n, n);
      T* const dgate = dpacked + row * 2 * n;
      if (dy != nullptr) gated_backward_row<F>(dy + row * n, gate, up, dgate, dgate + n, n);
    }
  });
}

[[gnu::always_inline]] inline void gated_any(const GatedBlock& block) {
  switch (block.dtype) {
    case DType::f16:
      return gated_elements<Half>(block);
    case DType::bf16:
      return gated_elements<BFloat16>(block);
    default:
      return gated_elements<float>(block);
  }
}

}  // namespace
}  // namespace castor
