// The dynamic 8-bit code: 256 numbers in [-1, 1] or [0, 1] whose spacing grows by decades, so that small numbers keep
// their relative precision. With one scale a block of elements it holds optimizer states in a byte an element.
//
// Source: Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization", arXiv:2110.02861, section 2.2: seven
// decades, of which decade i has 2^i (signed) or 2^(i+1) (unsigned) numbers, the middles of as many equal intervals of
// [0.1, 1] times 10^(i-6); and 0 and 1. Delicate: made by additions and multiplications in f64 alone and rounded once,
// so that every compiler makes the same table.
#pragma once

#include <cstdint>

#include "core/base/host_device.h"

namespace castor {

/// The code's numbers in ascending order, and between each two of them the number from which on the upper is nearer.
struct DynamicCode {
  static constexpr int kSize = 256;
  float value[kSize] = {};
  float edge[kSize - 1] = {};
};

/// The table; every number of the signed one but 0 and 1 has its negative.
constexpr DynamicCode make_dynamic_code(bool is_signed) {
  constexpr int kDecades = 7;
  double positive[DynamicCode::kSize] = {};
  int count = 0;
  double scale = 1e-6;
  for (int decade = 0; decade < kDecades; ++decade) {
    const int items = 1 << (is_signed ? decade : decade + 1);
    for (int i = 0; i < items; ++i) positive[count++] = scale * (0.1 + 0.9 * (i + 0.5) / items);
    scale *= 10;
  }
  DynamicCode code;
  int at = 0;
  if (is_signed) {
    for (int i = count - 1; i >= 0; --i) code.value[at++] = static_cast<float>(-positive[i]);
  }
  code.value[at++] = 0;
  for (int i = 0; i < count; ++i) code.value[at++] = static_cast<float>(positive[i]);
  code.value[at] = 1;
  for (int i = 0; i + 1 < DynamicCode::kSize; ++i)
    code.edge[i] =
        static_cast<float>(0.5 * (static_cast<double>(code.value[i]) + static_cast<double>(code.value[i + 1])));
  return code;
}

/// Where 0 is in the signed table; in the unsigned one it is the first.
inline constexpr int kSignedZero = 127;

/// One step of nearest_code's search.
CASTOR_HOST_DEVICE int climbed(const float* edges, float x, int code, int step) {
  return x > edges[code + step - 1] ? code + step : code;
}

/// The number of the table nearest to x; between two that are equally near the lower. Of NaN: 0.
///   edges  DynamicCode::edge, wherever the caller keeps it
CASTOR_HOST_DEVICE std::uint8_t nearest_code(const float* edges, float x) {
  int code = climbed(edges, x, 0, 128);
  code = climbed(edges, x, code, 64);
  code = climbed(edges, x, code, 32);
  code = climbed(edges, x, code, 16);
  code = climbed(edges, x, code, 8);
  code = climbed(edges, x, code, 4);
  code = climbed(edges, x, code, 2);
  return static_cast<std::uint8_t>(climbed(edges, x, code, 1));
}

}  // namespace castor
