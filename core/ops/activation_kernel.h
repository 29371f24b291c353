// Loops of the activations that linear and conv2d end in: forward, and backward with the column sums of the bias's
// gradient. Compiled once for each instruction set (activation_cpu.cpp, activation_avx512.cpp), because gelu and silu
// are bound by arithmetic.
//
// Delicate: everything here is file-local (see core/base/cpu_isa.h). The functors spell out their fused multiply-adds,
// so all copies give equal bits.
#pragma once

#include <cstdint>

#include "core/base/dtype.h"
#include "core/ops/activation.h"
#include "core/ops/pointwise.h"

namespace castor {
namespace {

/// y[i] = f(x[i]); y may be x.
template <class F, class T>
void activate_run(const T* x, T* y, std::int64_t count) {
  using S = decltype(load(T{}));
#pragma GCC ivdep
  for (std::int64_t i = 0; i < count; ++i) y[i] = store<T>(F::value(load(x[i]), S(0), S(0)));
}

/// Rows of n: dx = dy * slope(x) if `dx`, sums[j] += column sums of dx if `sums`. dx may be dy.
template <class F, bool kHasSums, class T, class S>
void backward_rows(const T* dy, const T* x, T* dx, S* sums, std::int64_t rows, std::int64_t n) {
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t at = row * n;
#pragma GCC ivdep
    for (std::int64_t j = 0; j < n; ++j) {
      const S saved = load(x[at + j]);
      const S value = load(dy[at + j]) * F::slope(saved, saved, S(0), S(0));
      dx[at + j] = store<T>(value);
      if constexpr (kHasSums) sums[j] += value;
    }
  }
}

/// sums[j] += dy's column sums, row after row as in backward_rows, but with four rows for each load and store of a sum.
template <class T, class S>
void sum_rows(const T* dy, S* sums, std::int64_t rows, std::int64_t n) {
  std::int64_t row = 0;
  for (; row + 4 <= rows; row += 4) {
    const T* const at = dy + row * n;
#pragma GCC ivdep
    for (std::int64_t j = 0; j < n; ++j) {
      S sum = sums[j] + load(at[j]);
      sum += load(at[n + j]);
      sum += load(at[2 * n + j]);
      sums[j] = sum + load(at[3 * n + j]);
    }
  }
  for (; row < rows; ++row) {
#pragma GCC ivdep
    for (std::int64_t j = 0; j < n; ++j) sums[j] += load(dy[row * n + j]);
  }
}

/// Calls f with the functor of an activation other than none.
template <class F>
[[gnu::always_inline]] inline void visit_activation(Activation activation, F&& f) {
  switch (activation) {
    case Activation::none:
      return;
    case Activation::relu:
      return f(pointwise::Relu{});
    case Activation::gelu_tanh:
      return f(pointwise::GeluTanh{});
    case Activation::gelu_erf:
      return f(pointwise::GeluErf{});
    case Activation::silu:
      return f(pointwise::Silu{});
  }
}

template <class T>
void activate_elements(Activation activation, const void* x, void* y, std::int64_t count) {
  visit_activation(activation,
                   [&](auto f) { activate_run<decltype(f)>(static_cast<const T*>(x), static_cast<T*>(y), count); });
}

template <class T>
void backward_elements(const ActivationBlock& block) {
  using S = decltype(load(T{}));
  const T *dy = static_cast<const T*>(block.dy), *x = static_cast<const T*>(block.x);
  T* const dx = static_cast<T*>(block.dx);
  S* const sums = static_cast<S*>(block.sums);
  for (std::int64_t j = 0; sums != nullptr && j < block.n; ++j) sums[j] = S(0);
  if (block.activation == Activation::none) return sum_rows(dy, sums, block.rows, block.n);
  visit_activation(block.activation, [&](auto f) {
    using F = decltype(f);
    sums != nullptr ? backward_rows<F, true>(dy, x, dx, sums, block.rows, block.n)
                    : backward_rows<F, false>(dy, x, dx, sums, block.rows, block.n);
  });
}

[[gnu::always_inline]] inline void activate_any(DType dtype, Activation activation, const void* x, void* y,
                                                std::int64_t count) {
  switch (dtype) {
    case DType::f16:
      return activate_elements<Half>(activation, x, y, count);
    case DType::bf16:
      return activate_elements<BFloat16>(activation, x, y, count);
    default:
      return activate_elements<float>(activation, x, y, count);
  }
}

[[gnu::always_inline]] inline void backward_any(const ActivationBlock& block) {
  switch (block.dtype) {
    case DType::f16:
      return backward_elements<Half>(block);
    case DType::bf16:
      return backward_elements<BFloat16>(block);
    default:
      return backward_elements<float>(block);
  }
}

}  // namespace
}  // namespace castor
