// 8-bit floats with one scale a tensor, taken from this tensor's largest magnitude ("current scaling"): what linear
// layers multiply in fp8.
//
// The recipe: scale is the largest power of two with amax * scale <= the format's largest finite value (448 for e4m3,
// 57344 for e5m2), q = round_to_nearest_even(x * scale), x is about q / scale. It is what cuBLASLt's per-tensor
// scaling takes (it multiplies by 1 / scale). A power of two costs less than one bit of range and rounds nothing by
// itself: q / scale is exact in bf16, so a product of expanded operands in f32 sums is the 8-bit product, bit for bit
// in each term, and the CPU emulates the GPU. Source: Micikevicius et al. 2022, arXiv:2209.05433.
// Delicate: a maximum does not depend on the order of its operands, so no number of threads changes a scale; infinite
// and NaN elements become NaN, never a large number, so that overflow is seen.
#pragma once

#include "core/base/dtype.h"
#include "core/base/host_device.h"
#include "core/device/dispatch.h"
#include "core/tensor/tensor.h"

namespace castor {

/// The bits of |value|: ordered like the magnitudes, NaN above all.
CASTOR_HOST_DEVICE std::uint32_t magnitude_bits(float value) {
  return detail::bit_cast<std::uint32_t>(value) & 0x7FFFFFFFu;
}

/// The scale for a tensor whose largest magnitude_bits are `largest`; 1 where that is zero, infinite or NaN. At most
/// 2^126 and at least 2^-126, so that it and its inverse are normal.
///   top_exponent  of the format's largest value, which is 1.75 * 2^top_exponent: 8 for e4m3, 15 for e5m2
CASTOR_HOST_DEVICE float fp8_scale(std::uint32_t largest, int top_exponent) {
  const int exponent = static_cast<int>(largest >> 23) - 127;  // subnormal: -127, clamped below
  const bool is_above = (largest & 0x7FFFFFu) > 0x600000u;     // the mantissa is above 1.75
  int power = top_exponent - exponent - (is_above ? 1 : 0);
  power = power > 126 ? 126 : power < -126 ? -126 : power;
  const bool is_usable = largest != 0 && largest < 0x7F800000u;
  return is_usable ? detail::bit_cast<float>(static_cast<std::uint32_t>(power + 127) << 23) : 1.0f;
}

/// The format's exponent for fp8_scale.
constexpr int fp8_top_exponent(DType format) { return format == DType::f8e4m3 ? 8 : 15; }

/// One element: x * scale in format T, NaN if x is not finite.
template <class T>
CASTOR_HOST_DEVICE T fp8_round(float x, float scale) {
  const bool is_finite = magnitude_bits(x) < 0x7F800000u;
  return store<T>(is_finite ? x * scale : detail::bit_cast<float>(0x7FC00000u));
}

/// scale = {1 / s, s} with s the fp8_scale of x's largest magnitude. x: f32|bf16|f16, row-major; scale: f32 [2]. The
/// inverse comes first because cuBLASLt wants what it multiplies by at a multiple of 16 bytes.
struct Fp8ScaleArgs {
  static constexpr const char* kName = "fp8_scale";
  View x, scale;
  DType format;  ///< f8e4m3|f8e5m2
};
Cost cost(const Fp8ScaleArgs& args);
void run(const Cpu& cpu, const Fp8ScaleArgs& args);
void run(const Cuda& cuda, const Fp8ScaleArgs& args);

/// y = x * scale[1], rounded, and its transpose, each of which may be absent, in one pass over x. x: f32|bf16|f16
/// [rows, n], y: f8e4m3|f8e5m2 [rows, n], transposed: [n, rows], row-major; scale: f32 [2].
struct Fp8RoundArgs {
  static constexpr const char* kName = "fp8_round";
  View x, scale, y, transposed = {};
  bool from_end = false;  ///< where to begin: what was written or read last is in a GPU's cache
  DType format() const { return y.defined() ? y.dtype : transposed.dtype; }
};
Cost cost(const Fp8RoundArgs& args);
void run(const Cpu& cpu, const Fp8RoundArgs& args);
void run(const Cuda& cuda, const Fp8RoundArgs& args);

/// y = x * scale[0]. x: f8e4m3|f8e5m2, y: f32|bf16|f16 of its shape, row-major; scale: f32 [2].
struct Fp8ExpandArgs {
  static constexpr const char* kName = "fp8_expand";
  View x, scale, y;
};
Cost cost(const Fp8ExpandArgs& args);
void run(const Cpu& cpu, const Fp8ExpandArgs& args);
void run(const Cuda& cuda, const Fp8ExpandArgs& args);

/// A tensor in 8 bits: values / scale is what it stands for.
struct Fp8Tensor {
  Tensor values;      ///< f8e4m3|f8e5m2, of the tensor's shape
  Tensor transposed;  ///< the same values as [last size, the other sizes' product], rows as `values`' columns
  Tensor scale;       ///< f32 [2]: the scale's inverse, then the scale
};

/// Which of a tensor's two orders are made. A GPU multiplies 8-bit numbers only along neighbours in memory, so there
/// each is a tensor of its own; on the CPU `transposed` is a view of the values, which then are always made.
struct Fp8Orders {
  bool values = true, transposed = false;
};

/// x in 8 bits.
///   x       f32|bf16|f16, any shape and strides; at least one axis for `transposed`
///   format  f8e4m3 (for weights and activations) or f8e5m2 (for gradients)
///   orders  what is made; the others stay undefined
///   scale   if given, what an earlier call found for these values: it is not looked for again
/// Throws DTypeError, ShapeError, DeviceError.
Fp8Tensor fp8_quantise(const Tensor& x, DType format, Fp8Orders orders = {}, const Tensor& scale = {});

/// Throws DTypeError or ShapeError naming `op` unless `scale` is what fp8_quantise gives: two neighbouring f32.
void check_fp8_scale(const char* op, const Tensor& scale);

/// What its values, of any strides, stand for, row-major, rounded once to `dtype` (f32|bf16|f16; exact in f32 and bf16
/// but for subnormals). Throws DTypeError, ShapeError, DeviceError.
Tensor fp8_expand(const Fp8Tensor& x, DType dtype);

}  // namespace castor
