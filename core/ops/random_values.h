// How random words become numbers: maths of the random family, written once for both compilers and in explicit steps,
// so that an element has the same bits on every device. Words are Philox outputs (core/base/philox.h): element i of a
// logical tensor owns word i % 4 of block i / 4.
#pragma once

#include "core/base/math.h"
#include "core/base/philox.h"

namespace castor::random_values {

/// Uniform in [low, low + range).
CASTOR_HOST_DEVICE float uniform(std::uint32_t word, float low, float range) {
  return math::fma(uniform_from_word(word), range, low);
}

/// cos(2 pi u) and sin(2 pi u) for u in [0, 1): Taylor series on an eighth of a turn either way, then quadrants.
struct CosSin {
  float cos, sin;
};
CASTOR_HOST_DEVICE CosSin cos_sin_of_turn(float u) {
  const float quarters = u * 4.0f;
  const std::int32_t quadrant = static_cast<std::int32_t>(quarters + 0.5f);
  const float x = (quarters - static_cast<float>(quadrant)) * 1.57079637f;
  const float x2 = x * x;
  float s = 1.0f / 362880.0f;
  s = math::fma(s, x2, -1.0f / 5040.0f);
  s = math::fma(s, x2, 1.0f / 120.0f);
  s = math::fma(s, x2, -1.0f / 6.0f);
  const float sine = math::fma(s * x2, x, x);
  float c = 1.0f / 40320.0f;
  c = math::fma(c, x2, -1.0f / 720.0f);
  c = math::fma(c, x2, 1.0f / 24.0f);
  c = math::fma(c, x2, -0.5f);
  const float cosine = math::fma(c, x2, 1.0f);
  const bool is_odd = (quadrant & 1) != 0;
  const float along = is_odd ? sine : cosine, across = is_odd ? cosine : sine;
  const bool flips_cos = ((quadrant + 1) & 2) != 0, flips_sin = (quadrant & 2) != 0;
  return {flips_cos ? -along : along, flips_sin ? -across : across};
}

/// Two independent standard normal numbers from two words; the first belongs to the even element.
/// Source: Box & Muller 1958, "A note on the generation of random normal deviates".
struct NormalPair {
  float even, odd;
};
CASTOR_HOST_DEVICE NormalPair normal_pair(std::uint32_t even_word, std::uint32_t odd_word) {
  const float u = math::fma(static_cast<float>(even_word >> 8), 1.0f / 16777216.0f, 1.0f / 16777216.0f);  // (0, 1]
  const float radius = math::sqrt(-2.0f * math::log(u));
  const CosSin direction = cos_sin_of_turn(uniform_from_word(odd_word));
  return {radius * direction.cos, radius * direction.sin};
}

/// The inverse of erf on (-1, 1), to about 3 units in the last place.
/// Source: Giles 2011, "Approximating the erfinv function", GPU Computing Gems Jade, chapter 10 (single precision).
CASTOR_HOST_DEVICE float erf_inverse(float x) {
  const float w = -math::log((1.0f - x) * (1.0f + x));
  const float a = w - 2.5f;
  float center = 2.81022636e-08f;
  center = math::fma(center, a, 3.43273939e-07f);
  center = math::fma(center, a, -3.5233877e-06f);
  center = math::fma(center, a, -4.39150654e-06f);
  center = math::fma(center, a, 0.00021858087f);
  center = math::fma(center, a, -0.00125372503f);
  center = math::fma(center, a, -0.00417768164f);
  center = math::fma(center, a, 0.246640727f);
  center = math::fma(center, a, 1.50140941f);
  const float b = math::sqrt(w < 5.0f ? 5.0f : w) - 3.0f;
  float tail = -0.000200214257f;
  tail = math::fma(tail, b, 0.000100950558f);
  tail = math::fma(tail, b, 0.00134934322f);
  tail = math::fma(tail, b, -0.00367342844f);
  tail = math::fma(tail, b, 0.00573950773f);
  tail = math::fma(tail, b, -0.0076224613f);
  tail = math::fma(tail, b, 0.00943887047f);
  tail = math::fma(tail, b, 1.00167406f);
  tail = math::fma(tail, b, 2.83297682f);
  return (w < 5.0f ? center : tail) * x;
}

/// A standard normal number conditioned on [low, high], by the inverse distribution function.
///   erf_low, erf_range   erf(low / sqrt 2) and erf(high / sqrt 2) - erf(low / sqrt 2)
CASTOR_HOST_DEVICE float truncated_normal(std::uint32_t word, float erf_low, float erf_range, float low, float high) {
  const float u = math::fma(static_cast<float>(word >> 8), 1.0f / 16777216.0f, 0.5f / 16777216.0f);  // (0, 1)
  const float z = 1.41421356f * erf_inverse(math::fma(u, erf_range, erf_low));
  const float at_least = z < low ? low : z;
  return at_least > high ? high : at_least;
}

/// Whether dropout keeps an element: its 24-bit number is at least `threshold` = probability * 2^24.
CASTOR_HOST_DEVICE bool is_kept(std::uint32_t word, std::uint32_t threshold) { return (word >> 8) >= threshold; }

}  // namespace castor::random_values
