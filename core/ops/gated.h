// Gated linear units: one half of a projection, through an activation, times the other half. With silu the unit is
// called SwiGLU, with gelu GEGLU, with relu ReGLU. Each direction is one pass over memory.
//
// Numerics: as in activation.h; a product with the gate is computed in f32 (f64 for f64) and rounded once.
// Source: Shazeer 2020, arXiv:2002.05202.
#pragma once

#include "core/ops/activation.h"

namespace castor {

/// y = activation(gate) * up. packed [rows, 2 n]: gate is the first half of a row, up the second; y [rows, n].
/// Row-major without gaps; f32|f16|bf16|f64.
struct GatedArgs {
  static constexpr const char* kName = "gated";
  View packed, y;
  Activation activation;
  View scale = {};  ///< f32 [2]: if defined, receives y's scale in f8e4m3, as Fp8ScaleArgs (core/ops/fp8.h) finds it
};
Cost cost(const GatedArgs& args);
void run(const Cpu& cpu, const GatedArgs& args);
void run(const Cuda& cuda, const GatedArgs& args);

/// dpacked = {dy up activation'(gate), dy activation(gate)}, side by side as in `packed`. dy [rows, n], the others
/// [rows, 2 n]; all as above. y = activation(gate) * up with the bits of GatedArgs; usually absent.
struct GatedBackwardArgs {
  static constexpr const char* kName = "gated_backward";
  View dy, packed, dpacked;
  Activation activation;
  View y = {};
  View scale = {};  ///< f32 [2]: if defined, receives dpacked's scale in f8e5m2
};
Cost cost(const GatedBackwardArgs& args);
void run(const Cpu& cpu, const GatedBackwardArgs& args);
void run(const Cuda& cuda, const GatedBackwardArgs& args);

/// activation(gate) * up.
///   packed   [..., 2 n], any strides (others than row-major cost a copy): gate is the first half of the last axis
///   scale    if not null, receives what fp8_quantise takes for the result in f8e4m3; undefined for f64 and where there
///            was nothing to do
///   returns  [..., n]
/// Throws ShapeError for an odd last size, DTypeError, InternalError for activation none.
Tensor gated(const Tensor& packed, Activation activation, Tensor* scale = nullptr);

/// Beside the gradient, in the same pass.
struct GatedBackwardWanted {
  Tensor* value = nullptr;  ///< receives gated(packed, activation), for a caller that did not keep it
  Tensor* scale = nullptr;  ///< receives what fp8_quantise takes for the gradient in f8e5m2; undefined as above
};

/// Its gradient.
///   dy       [..., n]
///   packed   as above
///   wanted   what else it makes
///   returns  that of `packed`, row-major
/// Throws as above.
Tensor gated_backward(const Tensor& dy, const Tensor& packed, Activation activation,
                      const GatedBackwardWanted& wanted = {});

/// What one thread does: forward, or where there is a `dy`, backward. null where absent.
struct GatedBlock {
  DType dtype;
  Activation activation;
  const void *packed, *dy;
  void *y, *dpacked;
  std::int64_t rows, n;
};

/// The copy of the loops for processors with AVX-512.
void gated_avx512(const GatedBlock& block);

}  // namespace castor
