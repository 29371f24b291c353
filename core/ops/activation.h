// The activations that linear and conv2d end in, and the pass over memory that their gradients share: a linear layer,
// and a convolution whose pixels are rows, both end in "+ bias, then activation".
//
// Numerics: values and slopes are those of pointwise.h, bit for bit, in every instruction set and in f32 on CUDA. 16
// bits on CUDA go through the GPU's own exponential: one unit in the last place or 4e-6 from the CPU's, which cancel
// more.
#pragma once

#include <utility>

#include "core/device/dispatch.h"
#include "core/ops/pointwise.h"
#include "core/tensor/tensor.h"

namespace castor {

enum class Activation : std::uint8_t { none, relu, gelu_tanh, gelu_erf, silu };

/// The pointwise op of an activation other than none.
UnaryOp unary_op(Activation activation);

/// y = activation(x), element by element in memory order; x and y dense with equal strides, f32|f16|bf16|f64. y may be
/// x.
struct ActivationArgs {
  static constexpr const char* kName = "activation";
  View x, y;
  Activation activation;
};
Cost cost(const ActivationArgs& args);
void run(const Cpu& cpu, const ActivationArgs& args);
void run(const Cuda& cuda, const ActivationArgs& args);

/// dx = dy * activation'(saved), and dbias = dx summed over the rows, in one pass. Row-major [rows, n] without gaps;
/// f32|f16| bf16|f64. `saved` is the activation's input. For none, `saved` and `dx` are absent and dbias sums dy. dx
/// may be dy; `dbias` [n] may be absent. Sums are f32 (f64 for f64) over fixed blocks of rows, so no thread count
/// changes them. y = activation(saved), with the bits of ActivationArgs; usually absent.
struct BiasBackwardArgs {
  static constexpr const char* kName = "bias_backward";
  View dy, saved, dx, dbias, workspace;
  Activation activation;
  View y = {};
  View scale = {};                     ///< f32 [2]: if defined, receives dx's (for none: dy's) scale in 8 bits
  DType scale_format = DType::f8e5m2;  ///< as Fp8ScaleArgs (core/ops/fp8.h) finds it
};
Cost cost(const BiasBackwardArgs& args);
std::size_t workspace_bytes(const Cpu& cpu, const BiasBackwardArgs& args);
std::size_t workspace_bytes(const Cuda& cuda, const BiasBackwardArgs& args);
void run(const Cpu& cpu, const BiasBackwardArgs& args);
void run(const Cuda& cuda, const BiasBackwardArgs& args);

/// activation(x) for a dense x of any order of axes (row-major, channels-last). With `keep_input` the result is a new
/// tensor, otherwise it is written over x.
Tensor activate(const Tensor& x, Activation activation, bool keep_input);

/// Beside the gradients, in the same pass.
struct BiasBackwardWanted {
  Tensor* value = nullptr;  ///< receives activation(saved), row-major: for a caller that did not keep it; not for none
  Tensor* scale = nullptr;  ///< receives what fp8_quantise takes for dx in f8e5m2; undefined where there was nothing to
                            ///< do, and for f64
  Tensor bias_place = {};   ///< [n] of dy's dtype, where dbias is made; undefined: in memory of its own
};

/// The gradient of a bias and of an activation's input at once, for rows of any op that ends in them.
///   dy       [rows, n]; handed over: when it is row-major and nobody else holds it, its bytes are reused
///   saved    the activation's input [rows, n]; undefined for none
///   wanted   what else it makes, and where
///   returns  {dx [rows, n], dbias [n] or undefined if not `needs_bias`}; dx is dy itself for none
/// Throws ShapeError, DTypeError, DeviceError.
std::pair<Tensor, Tensor> bias_backward(Tensor dy, const Tensor& saved, Activation activation, bool needs_bias,
                                        const BiasBackwardWanted& wanted = {});

/// What one thread does of a BiasBackwardArgs: `rows` rows from the given addresses on; null where absent.
struct ActivationBlock {
  DType dtype;
  Activation activation;
  const void *dy, *x;
  void *dx, *sums;  ///< sums: [n] f32 (f64 for f64), overwritten
  std::int64_t rows, n;
};

/// The copies of the loops for processors with AVX-512.
void activate_avx512(DType dtype, Activation activation, const void* x, void* y, std::int64_t count);
void activation_backward_avx512(const ActivationBlock& block);

}  // namespace castor
