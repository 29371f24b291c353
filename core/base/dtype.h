// Element types and the 16- and 8-bit number formats, with conversions that both compilers read and that give the same
// bits everywhere (round to nearest even; f8e4m3 saturates to its largest finite value, as the OCP 8-bit specification
// allows and training recipes expect; f8e5m2 overflows to infinity).
//
// Sources: IEEE 754-2019; OCP 8-bit Floating Point Specification 1.0 (2023), sections 5.2-5.3.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <ostream>
#include <string_view>
#include <type_traits>

#include "core/base/error.h"
#include "core/base/host_device.h"

namespace castor {

/// Element type of a tensor.
enum class DType : std::uint8_t { f32, f16, bf16, f8e4m3, f8e5m2, f64, i64, i32, u8, boolean };

/// The bits of an IEEE binary16 number.
struct Half {
  std::uint16_t bits;
};
/// The bits of a bfloat16 number.
struct BFloat16 {
  std::uint16_t bits;
};
/// The bits of an OCP E4M3 number (no infinities; 0x7F and 0xFF are NaN; largest finite 448).
struct Float8E4M3 {
  std::uint8_t bits;
};
/// The bits of an OCP E5M2 number (largest finite 57344).
struct Float8E5M2 {
  std::uint8_t bits;
};

namespace detail {
template <class To, class From>
CASTOR_HOST_DEVICE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

// Rounds an f32 to a small format with `kMantissa` stored bits and exponent bias `kBias`; returns its bits without the
// sign. Values at or above `limit_bits` (the first magnitude, as f32 bits, that does not round to a finite one) give
// `overflow`.
template <int kMantissa, int kBias>
CASTOR_HOST_DEVICE std::uint32_t round_small_float(std::uint32_t magnitude, std::uint32_t limit_bits,
                                                   std::uint32_t overflow) {
  constexpr int kShift = 23 - kMantissa;
  const std::uint32_t smallest_normal = static_cast<std::uint32_t>(127 - kBias + 1) << 23;
  // Normal: add half an ulp minus one plus the kept bit, then shift and re-bias.
  const std::uint32_t rounded = magnitude + ((1u << (kShift - 1)) - 1u) + ((magnitude >> kShift) & 1u);
  const std::uint32_t normal = (rounded >> kShift) - (static_cast<std::uint32_t>(127 - kBias) << kMantissa);
  // Subnormal: adding this power of two makes the f32 adder round at the right place.
  const std::uint32_t anchor_bits = static_cast<std::uint32_t>(127 - kBias + 1 + kShift) << 23;
  const float anchor = bit_cast<float>(anchor_bits);
  const std::uint32_t subnormal = bit_cast<std::uint32_t>(bit_cast<float>(magnitude) + anchor) - anchor_bits;
  const std::uint32_t finite = magnitude < smallest_normal ? subnormal : normal;
  return magnitude >= limit_bits ? overflow : finite;
}
}  // namespace detail

CASTOR_HOST_DEVICE float to_float(BFloat16 x) {
  return detail::bit_cast<float>(static_cast<std::uint32_t>(x.bits) << 16);
}

CASTOR_HOST_DEVICE float to_float(Half x) {
  const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = static_cast<std::uint32_t>(x.bits & 0x7FFFu) << 13;
  // Multiplying by 2^112 re-biases the exponent and normalises subnormals exactly.
  const float scaled = detail::bit_cast<float>(magnitude) * detail::bit_cast<float>(0x77800000u);
  const std::uint32_t finite = detail::bit_cast<std::uint32_t>(scaled);
  const std::uint32_t special = magnitude | 0x7F800000u;
  return detail::bit_cast<float>(sign | ((x.bits & 0x7C00u) == 0x7C00u ? special : finite));
}

CASTOR_HOST_DEVICE float to_float(Float8E5M2 x) {
  return to_float(Half{static_cast<std::uint16_t>(static_cast<std::uint16_t>(x.bits) << 8)});
}

CASTOR_HOST_DEVICE float to_float(Float8E4M3 x) {
  const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x80u) << 24;
  const std::uint32_t magnitude = static_cast<std::uint32_t>(x.bits & 0x7Fu) << 20;
  const float scaled = detail::bit_cast<float>(magnitude) * detail::bit_cast<float>(0x7B800000u);  // 2^120
  const std::uint32_t finite = detail::bit_cast<std::uint32_t>(scaled);
  return detail::bit_cast<float>(sign | ((x.bits & 0x7Fu) == 0x7Fu ? 0x7FC00000u : finite));
}

CASTOR_HOST_DEVICE BFloat16 to_bfloat16(float value) {
  const std::uint32_t bits = detail::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const std::uint32_t quiet = (bits >> 16) | 0x40u;
  return {static_cast<std::uint16_t>((bits & 0x7FFFFFFFu) > 0x7F800000u ? quiet : rounded)};
}

CASTOR_HOST_DEVICE Half to_half(float value) {
  const std::uint32_t bits = detail::bit_cast<std::uint32_t>(value);
  const std::uint32_t magnitude = bits & 0x7FFFFFFFu;
  const std::uint32_t finite =
      detail::round_small_float<10, 15>(magnitude, 0x477FF000u, 0x7C00u);  // 65520 and above: infinity
  const std::uint32_t small = magnitude > 0x7F800000u ? 0x7E00u : finite;
  return {static_cast<std::uint16_t>(((bits >> 16) & 0x8000u) | small)};
}

CASTOR_HOST_DEVICE Float8E5M2 to_float8_e5m2(float value) {
  const std::uint32_t bits = detail::bit_cast<std::uint32_t>(value);
  const std::uint32_t magnitude = bits & 0x7FFFFFFFu;
  const std::uint32_t finite =
      detail::round_small_float<2, 15>(magnitude, 0x47700000u, 0x7Cu);  // 61440 and above: infinity
  const std::uint32_t small = magnitude > 0x7F800000u ? 0x7Eu : finite;
  return {static_cast<std::uint8_t>(((bits >> 24) & 0x80u) | small)};
}

CASTOR_HOST_DEVICE Float8E4M3 to_float8_e4m3(float value) {
  const std::uint32_t bits = detail::bit_cast<std::uint32_t>(value);
  const std::uint32_t magnitude = bits & 0x7FFFFFFFu;
  const std::uint32_t finite =
      detail::round_small_float<3, 7>(magnitude, 0x43E80000u, 0x7Eu);  // 464 and above: saturate at 448
  const std::uint32_t small = magnitude > 0x7F800000u ? 0x7Fu : finite;
  return {static_cast<std::uint8_t>(((bits >> 24) & 0x80u) | small)};
}

/// Reads an element as the type arithmetic is done in: f32 for the small floats, the type itself otherwise.
template <class T>
CASTOR_HOST_DEVICE auto load(T x) {
  if constexpr (std::is_arithmetic_v<T>) {
    return x;
  } else {
    return to_float(x);
  }
}

/// Converts `value` to element type T: small floats round to nearest even, bool is "not zero", integers truncate.
template <class T, class V>
CASTOR_HOST_DEVICE T store(V value) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return to_bfloat16(static_cast<float>(value));
  } else if constexpr (std::is_same_v<T, Half>) {
    return to_half(static_cast<float>(value));
  } else if constexpr (std::is_same_v<T, Float8E4M3>) {
    return to_float8_e4m3(static_cast<float>(value));
  } else if constexpr (std::is_same_v<T, Float8E5M2>) {
    return to_float8_e5m2(static_cast<float>(value));
  } else if constexpr (std::is_same_v<T, bool>) {
    return value != V{0};
  } else {
    return static_cast<T>(value);
  }
}

/// Bytes of one element.
constexpr std::size_t dtype_size(DType dtype) {
  switch (dtype) {
    case DType::f64:
    case DType::i64:
      return 8;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::f16:
    case DType::bf16:
      return 2;
    case DType::f8e4m3:
    case DType::f8e5m2:
    case DType::u8:
    case DType::boolean:
      return 1;
  }
  return 0;
}

/// The name used in configs, logs and errors: "f32", "bf16", "f8e4m3", "bool", ...
constexpr std::string_view dtype_name(DType dtype) {
  constexpr std::string_view kNames[] = {"f32", "f16", "bf16", "f8e4m3", "f8e5m2", "f64", "i64", "i32", "u8", "bool"};
  return kNames[static_cast<int>(dtype)];
}

/// The element type called `name`. Throws DTypeError, listing the names, if there is none.
inline DType dtype_from_name(std::string_view name) {
  for (int i = 0; i <= static_cast<int>(DType::boolean); ++i) {
    if (dtype_name(static_cast<DType>(i)) == name) return static_cast<DType>(i);
  }
  throw DTypeError(cat("dtype: expected one of f32 f16 bf16 f8e4m3 f8e5m2 f64 i64 i32 u8 bool, got '", name, "'"));
}

inline std::ostream& operator<<(std::ostream& out, DType dtype) { return out << dtype_name(dtype); }

/// True for f32, f16, bf16, f64 and the two 8-bit floats.
constexpr bool is_floating(DType dtype) {
  return dtype != DType::i64 && dtype != DType::i32 && dtype != DType::u8 && dtype != DType::boolean;
}

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> : std::integral_constant<DType, DType::f32> {};
template <>
struct DTypeOf<double> : std::integral_constant<DType, DType::f64> {};
template <>
struct DTypeOf<Half> : std::integral_constant<DType, DType::f16> {};
template <>
struct DTypeOf<BFloat16> : std::integral_constant<DType, DType::bf16> {};
template <>
struct DTypeOf<Float8E4M3> : std::integral_constant<DType, DType::f8e4m3> {};
template <>
struct DTypeOf<Float8E5M2> : std::integral_constant<DType, DType::f8e5m2> {};
template <>
struct DTypeOf<std::int64_t> : std::integral_constant<DType, DType::i64> {};
template <>
struct DTypeOf<std::int32_t> : std::integral_constant<DType, DType::i32> {};
template <>
struct DTypeOf<std::uint8_t> : std::integral_constant<DType, DType::u8> {};
template <>
struct DTypeOf<bool> : std::integral_constant<DType, DType::boolean> {};

/// Carries a C++ type through a visitor's argument.
template <class T>
struct TypeTag {
  using type = T;
};

/// Calls f(TypeTag<T>{}) for dtype in {f32, f16, bf16}: what training kernels take. Throws DTypeError naming `op`
/// otherwise.
template <class F>
decltype(auto) visit_training_float(DType dtype, const char* op, F&& f) {
  switch (dtype) {
    case DType::f32:
      return f(TypeTag<float>{});
    case DType::f16:
      return f(TypeTag<Half>{});
    case DType::bf16:
      return f(TypeTag<BFloat16>{});
    default:
      throw DTypeError(cat(op, ": expected f32, f16 or bf16, got ", dtype));
  }
}

/// Calls f(TypeTag<T>{}) for any element type.
template <class F>
decltype(auto) visit_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32:
      return f(TypeTag<float>{});
    case DType::f16:
      return f(TypeTag<Half>{});
    case DType::bf16:
      return f(TypeTag<BFloat16>{});
    case DType::f8e4m3:
      return f(TypeTag<Float8E4M3>{});
    case DType::f8e5m2:
      return f(TypeTag<Float8E5M2>{});
    case DType::f64:
      return f(TypeTag<double>{});
    case DType::i64:
      return f(TypeTag<std::int64_t>{});
    case DType::i32:
      return f(TypeTag<std::int32_t>{});
    case DType::u8:
      return f(TypeTag<std::uint8_t>{});
    case DType::boolean:
      return f(TypeTag<bool>{});
  }
  throw InternalError("visit_dtype: a dtype outside the enumeration");
}

}  // namespace castor
