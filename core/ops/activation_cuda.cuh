// Activations as kernels on CUDA compute them, alone and in gated pairs.
//
// Delicate: results of 16 bits go through the processor's own exponential and reciprocal (errors of some 1e-7, relative
// to the result), because the exact ones would take longer than memory does; f32 and f64 have the bits of pointwise.h.
#pragma once

#include "core/ops/activation.h"
#include "core/ops/row_packs_cuda.cuh"

namespace castor::cuda {

__device__ inline float reciprocal_16(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

/// pointwise::Silu for results of 16 bits.
struct Silu16 {
  __device__ static float sigmoid(float x) { return reciprocal_16(1.0f + exp2_16(-math::kLog2E * x)); }
  __device__ static float value(float x, float, float) { return x * sigmoid(x); }
  __device__ static float slope(float x, float, float, float) {
    const float s = sigmoid(x);
    return s * math::fma(x, 1.0f - s, 1.0f);
  }
};

/// pointwise::GeluTanh for results of 16 bits: (1 + tanh(u)) / 2 = sigmoid(2u).
struct GeluTanh16 {
  static constexpr float kScale = 2 * 0.79788456080286536f, kCubic = 0.044715f;
  __device__ static float sigmoid(float x) { return Silu16::sigmoid(x * math::fma(kScale * kCubic, x * x, kScale)); }
  __device__ static float value(float x, float, float) { return x * sigmoid(x); }
  __device__ static float slope(float x, float, float, float) {
    const float s = sigmoid(x);
    // x times the slope of 2u. Beyond 16, where s is 0 or 1, it must stay finite.
    const float near = fminf(fmaxf(x, -16.0f), 16.0f),
                inner = near * math::fma(3 * kScale * kCubic, near * near, kScale);
    return s * math::fma(inner, 1.0f - s, 1.0f);
  }
};

/// pointwise::GeluErf for results of 16 bits: Phi by the Chebyshev fit of math::erf, on both sides.
struct GeluErf16 {
  __device__ static float cdf(float x) {
    const float a = fabsf(x) * 0.70710678f, t = reciprocal_16(math::fma(0.5f, a, 1.0f));
    float p = 0.17087277f;
    p = math::fma(p, t, -0.82215223f);
    p = math::fma(p, t, 1.48851587f);
    p = math::fma(p, t, -1.13520398f);
    p = math::fma(p, t, 0.27886807f);
    p = math::fma(p, t, -0.18628806f);
    p = math::fma(p, t, 0.09678418f);
    p = math::fma(p, t, 0.37409196f);
    p = math::fma(p, t, 1.00002368f);
    p = math::fma(p, t, -1.26551223f);
    const float tail = 0.5f * t * exp2_16(math::kLog2E * math::fma(-a, a, p));
    return x < 0.0f ? tail : 1.0f - tail;
  }
  __device__ static float value(float x, float, float) { return x * cdf(x); }
  __device__ static float slope(float x, float, float, float) {
    return math::fma(x, 0.39894228f * exp2_16(-0.5f * math::kLog2E * (x * x)), cdf(x));
  }
};

/// Calls f with the functor of an activation other than none, for elements of type T.
template <class T, class F>
void visit_activation(Activation activation, F&& f) {
  constexpr bool kIs16 = sizeof(T) == 2;
  switch (activation) {
    case Activation::none:
      return;
    case Activation::relu:
      return f(pointwise::Relu{});
    case Activation::gelu_tanh:
      return f(std::conditional_t<kIs16, GeluTanh16, pointwise::GeluTanh>{});
    case Activation::gelu_erf:
      return f(std::conditional_t<kIs16, GeluErf16, pointwise::GeluErf>{});
    case Activation::silu:
      return f(std::conditional_t<kIs16, Silu16, pointwise::Silu>{});
  }
}

}  // namespace castor::cuda
