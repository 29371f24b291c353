// Elementary functions in f32 that give the same bits in scalar code, AVX2, AVX-512 and CUDA: branch-free, explicit
// fma, no table, so compilers vectorise loops over them. f64 goes to the C library.
//
// Delicate: do not reassociate; each expression is part of the numerics key. Errors are at most 3 units in the last
// place over the stated ranges (tests/unit/math_test.cpp measures them).
#pragma once

#include <cmath>
#include <cstdint>

#include "core/base/dtype.h"
#include "core/base/host_device.h"

namespace castor::math {

inline constexpr float kLog2E = 1.44269504f;  ///< the logarithm of e to base 2

CASTOR_HOST_DEVICE float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
CASTOR_HOST_DEVICE double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }

/// e^x. Taylor polynomial of degree 7 on |r| <= ln(2)/2 after x = n ln 2 + r; 0 below -103.97, infinity above 88.72.
CASTOR_HOST_DEVICE float exp(float x) {
  const float low = x < -104.0f ? -104.0f : x;
  const float bounded = low > 89.0f ? 89.0f : low;
  const float shifted = fma(bounded, kLog2E, 12582912.0f);  // 1.5 * 2^23: rounds to an integer in the low bits
  const float n = shifted - 12582912.0f;
  float r = fma(n, -0.693359375f, bounded);
  r = fma(n, 2.12194440e-4f, r);
  float p = 1.0f / 5040.0f;
  p = fma(p, r, 1.0f / 720.0f);
  p = fma(p, r, 1.0f / 120.0f);
  p = fma(p, r, 1.0f / 24.0f);
  p = fma(p, r, 1.0f / 6.0f);
  p = fma(p, r, 0.5f);
  p = fma(p, r, 1.0f);
  p = fma(p, r, 1.0f);
  // Two factors of 2^(n/2), so that results below the normal range round once.
  const std::int32_t whole = castor::detail::bit_cast<std::int32_t>(shifted) - 0x4B400000;
  const std::int32_t half = whole >> 1;
  const float first = castor::detail::bit_cast<float>((half + 127) << 23);
  const float second = castor::detail::bit_cast<float>((whole - half + 127) << 23);
  const float result = p * first * second;
  return x != x ? x : result;
}
CASTOR_HOST_DEVICE double exp(double x) { return std::exp(x); }

/// Natural logarithm, by the atanh series of (m-1)/(m+1) with m in [sqrt(1/2), sqrt(2)); -infinity at 0, NaN below.
CASTOR_HOST_DEVICE float log(float x) {
  const bool is_subnormal = x < 1.17549435e-38f;
  const float scaled = is_subnormal ? x * 16777216.0f : x;
  const std::int32_t bits = castor::detail::bit_cast<std::int32_t>(scaled);
  const std::int32_t exponent = (bits - 0x3F3504F3) >> 23;
  const float m = castor::detail::bit_cast<float>(bits - (exponent << 23));
  const float e = static_cast<float>(exponent) - (is_subnormal ? 24.0f : 0.0f);
  const float f = m - 1.0f;
  const float s = f / (m + 1.0f);
  const float s2 = s * s;
  float p = 2.0f / 11.0f;
  p = fma(p, s2, 2.0f / 9.0f);
  p = fma(p, s2, 2.0f / 7.0f);
  p = fma(p, s2, 2.0f / 5.0f);
  p = fma(p, s2, 2.0f / 3.0f);
  // log(m) = f - s * (f - s2 * p): exact where f is small.
  const float log_m = f - s * (f - s2 * p);
  const float result = fma(e, 0.693359375f, fma(e, -2.12194440e-4f, log_m));
  const float special = x == 0.0f ? -HUGE_VALF : (x < 0.0f ? castor::detail::bit_cast<float>(0x7FC00000u) : result);
  return x == HUGE_VALF || x != x ? x : special;
}
CASTOR_HOST_DEVICE double log(double x) { return std::log(x); }

/// Hyperbolic tangent: Lambert's continued fraction near 0, 1 - 2/(e^2|x| + 1) elsewhere.
CASTOR_HOST_DEVICE float tanh(float x) {
  const float a = x < 0.0f ? -x : x;
  const float x2 = x * x;
  const float numerator = fma(x2 + 105.0f, x2, 945.0f);
  const float denominator = fma(fma(15.0f, x2, 420.0f), x2, 945.0f);
  const float small = x * (numerator / denominator);
  const float large = 1.0f - 2.0f / (exp(a + a) + 1.0f);
  const float signed_large = x < 0.0f ? -large : large;
  const float result = a < 0.55f ? small : signed_large;
  return x != x ? x : result;
}
CASTOR_HOST_DEVICE double tanh(double x) { return std::tanh(x); }

/// 1 / (1 + e^-x).
CASTOR_HOST_DEVICE float sigmoid(float x) {
  const float e = exp(x < 0.0f ? x : -x);
  const float numerator = x < 0.0f ? e : 1.0f;
  return numerator / (1.0f + e);
}
CASTOR_HOST_DEVICE double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

/// Error function: Maclaurin series for |x| <= 1, elsewhere 1 - erfc by the Chebyshev fit of Press et al., "Numerical
/// Recipes", section 6.2 (relative error of erfc below 1.2e-7).
CASTOR_HOST_DEVICE float erf(float x) {
  const float a = x < 0.0f ? -x : x;
  const float x2 = x * x;
  float series = 1.0f / (3628800.0f * 21.0f);
  series = fma(series, -x2, 1.0f / (362880.0f * 19.0f));
  series = fma(series, -x2, 1.0f / (40320.0f * 17.0f));
  series = fma(series, -x2, 1.0f / (5040.0f * 15.0f));
  series = fma(series, -x2, 1.0f / (720.0f * 13.0f));
  series = fma(series, -x2, 1.0f / (120.0f * 11.0f));
  series = fma(series, -x2, 1.0f / (24.0f * 9.0f));
  series = fma(series, -x2, 1.0f / (6.0f * 7.0f));
  series = fma(series, -x2, 1.0f / (2.0f * 5.0f));
  series = fma(series, -x2, 1.0f / 3.0f);
  series = fma(series, -x2, 1.0f);
  const float small = 1.1283791670955126f * x * series;
  const float t = 1.0f / fma(0.5f, a, 1.0f);
  float p = 0.17087277f;
  p = fma(p, t, -0.82215223f);
  p = fma(p, t, 1.48851587f);
  p = fma(p, t, -1.13520398f);
  p = fma(p, t, 0.27886807f);
  p = fma(p, t, -0.18628806f);
  p = fma(p, t, 0.09678418f);
  p = fma(p, t, 0.37409196f);
  p = fma(p, t, 1.00002368f);
  p = fma(p, t, -1.26551223f);
  const float large = 1.0f - t * exp(fma(-a, a, p));
  const float signed_large = x < 0.0f ? -large : large;
  const float result = a <= 1.0f ? small : signed_large;
  return x != x ? x : result;
}
CASTOR_HOST_DEVICE double erf(double x) { return std::erf(x); }

CASTOR_HOST_DEVICE float sqrt(float x) { return __builtin_sqrtf(x); }
CASTOR_HOST_DEVICE double sqrt(double x) { return __builtin_sqrt(x); }

/// a^b by the C library, per element.
CASTOR_HOST_DEVICE float pow(float a, float b) { return powf(a, b); }
CASTOR_HOST_DEVICE double pow(double a, double b) { return std::pow(a, b); }

}  // namespace castor::math
