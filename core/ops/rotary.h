// Rotary position embedding, half-split layout: elements d and d + R/2 of a head form a plane that turns by an angle
// proportional to the position. Angles come from a table made once, on the host, in f64: every device reads the same
// numbers.
//
// Source: Su et al. 2021, arXiv:2104.09864, section 3.4.2; the half-split pairing is GPT-NeoX's.
#pragma once

#include "core/device/dispatch.h"
#include "core/tensor/tensor.h"

namespace castor {

/// y = x turned by the table's angles at positions offset .. offset + T - 1 (by their negatives if `inverse`).
///   x, y      [B, T, H, D], f32|bf16|f16 with an f32 table or f64 with an f64 one, last stride 1; y may be x
///   cos, sin  [positions, R/2] row-major, R <= D; elements from R on are copied
struct RotaryArgs {
  static constexpr const char* kName = "rotary";
  View x, cos, sin, y;
  std::int64_t offset;
  bool inverse;
};
Cost cost(const RotaryArgs& args);
void run(const Cpu& cpu, const RotaryArgs& args);
void run(const Cuda& cuda, const RotaryArgs& args);

/// Cosines and sines of position * base^(-2 i / R) for i in [0, R/2).
struct RotaryTable {
  Tensor cos, sin;  ///< [positions, R/2]
};

/// The table for positions 0 .. positions - 1.
///   rotary_dim  R, even, at least 2: how many elements of a head turn
///   dtype       f32, or f64 for f64 tensors
/// Throws ShapeError for an odd R, DTypeError for other dtypes.
RotaryTable make_rotary_table(std::int64_t positions, std::int64_t rotary_dim, double base = 10000,
                              Device device = kCpu, DType dtype = DType::f32);

/// x turned, in a new row-major tensor. Any strides (a last stride other than 1 costs a copy).
///   x       [B, T, H, D]
///   offset  the position of x's first token
///   inverse turns back: the gradient of rotary is rotary of the gradient, inverse
/// Throws ShapeError (axes, R > D, positions beyond the table), DTypeError, DeviceError.
Tensor rotary(const Tensor& x, const RotaryTable& table, std::int64_t offset = 0, bool inverse = false);

/// The same written into y, a view of x's shape and dtype with last stride 1; y may be x, e.g. a slice of a packed
/// projection.
void rotary_into(const Tensor& x, const RotaryTable& table, const Tensor& y, std::int64_t offset = 0,
                 bool inverse = false);

}  // namespace castor
