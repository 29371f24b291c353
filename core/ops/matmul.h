// Matrix products: batched matmul, the linear layer with its activation, and their gradients. Operands may be
// transposed or strided views; a copy is made only where no stride of the two inner axes is 1.
//
// Numerics: sums of f32, f16 and bf16 are f32 and a result is rounded once. The bias is added before that rounding; an
// activation reads the rounded value, which is what backward saves, so that recomputing gives equal bits. The algorithm
// is a function of sizes, strides, dtype, threads and instruction set only; on CUDA of sizes, strides, alignments up to
// 16 bytes, dtype, GPU model and cuBLAS's version.
#pragma once

#include "core/device/dispatch.h"
#include "core/ops/activation.h"
#include "core/tensor/tensor.h"

namespace castor {

/// c = a b + bias over equal leading axes (a stride of 0 repeats an operand). a [..., m, k], b [..., k, n], bias [n] or
/// absent, c [..., m, n] row-major in its two inner axes; one dtype: f32|f16|bf16|f64. In the inner axes of a and of b
/// one stride is 1 and the other at least the size. `workspace` is what workspace_bytes asks for, absent for 0.
/// Without a bias, c may be f32 where a and b are of 16 bits; c of f32 and f64 may accumulate: c += a b.
struct MatmulArgs {
  static constexpr const char* kName = "matmul";
  View a, b, bias, c, workspace;
  bool accumulates = false;
};
Cost cost(const MatmulArgs& args);
std::size_t workspace_bytes(const Cpu& cpu, const MatmulArgs& args);
std::size_t workspace_bytes(const Cuda& cuda, const MatmulArgs& args);
void run(const Cpu& cpu, const MatmulArgs& args);
void run(const Cuda& cuda, const MatmulArgs& args);

/// The matrix product over the last two axes; leading axes broadcast.
///   a        f32|f16|bf16|f64 [..., m, k], any strides
///   b        the same dtype [..., k, n], any strides
///   bias     [n] or undefined
///   returns  [..., m, n], row-major; zero (or the bias) where k is 0
/// Throws ShapeError if an operand has fewer than 2 axes, the inner sizes differ, or the leading axes do not broadcast;
/// DTypeError for other or differing dtypes; DeviceError.
Tensor matmul(const Tensor& a, const Tensor& b, const Tensor& bias = {});

/// c = a b, or c += a b, for a caller that has the result's memory: one stretch of rows, or a sum of several products
/// that is rounded once, when it is read.
///   a, b         f32|f16|bf16|f64 [m, k] and [k, n] of one dtype, any strides
///   c            [m, n], row-major in memory up to its row stride: their dtype, or f32
///   accumulates  c is f32 or f64 and is added to
/// Throws ShapeError, DTypeError, DeviceError.
void matmul_into(const Tensor& a, const Tensor& b, const Tensor& c, bool accumulates = false);

/// The linear layer, activation(x weight^T + bias).
///   x        f32|f16|bf16|f64 [..., k]
///   weight   [n, k], of x's dtype
///   bias     [n] or undefined
///   saved    if given, receives what linear_backward needs of this call: the activation's input (undefined for none)
///   returns  [..., n], row-major
/// Throws ShapeError, DTypeError, DeviceError.
Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias = {}, Activation activation = Activation::none,
              Tensor* saved = nullptr);

/// Which gradients linear_backward computes.
struct LinearNeeds {
  bool x = true, weight = true, bias = true;
  /// Where the parameters' go, row-major; it may be the parameter itself. Undefined: to new memory.
  Tensor weight_place = {}, bias_place = {};
};
/// Undefined where not asked for.
struct LinearGradients {
  Tensor x, weight, bias;
};

/// Gradients of `linear`. Hands over `dy`: when nobody else holds it, its bytes are reused.
///   dy, x, weight  as in the forward call; `saved` as it gave
///   returns        gradients with the shapes of x, weight [n, k] and bias [n], each rounded once from f32 sums
/// Throws ShapeError, DTypeError, DeviceError.
LinearGradients linear_backward(Tensor dy, const Tensor& x, const Tensor& weight, const Tensor& saved,
                                Activation activation, LinearNeeds needs = {});

/// What lies between two linear layers: an activation, or with `is_gated` a gated unit (core/ops/gated.h), whose input
/// is twice as wide as its result.
struct HiddenActivation {
  Activation activation;
  bool is_gated = false;
};

/// Gradients of two linear layers with an activation between them.
struct FeedForwardGradients {
  LinearGradients fc, proj;  ///< proj.x stays undefined
};

/// Gradients of linear(hidden(linear(x, fc_weight, bias)), proj_weight, bias) where the activation's result was not
/// kept: it is computed from `input` again, in the pass that makes its gradient. Hands over `dy`.
///   dy       [..., n] of the second layer's result
///   x        [..., k] of the first layer
///   input    the activation's input: [rows, m], gated [rows, 2 m]
/// Throws ShapeError, DTypeError, DeviceError.
FeedForwardGradients feed_forward_backward(Tensor dy, const Tensor& x, const Tensor& fc_weight, const Tensor& input,
                                           HiddenActivation hidden, const Tensor& proj_weight,
                                           LinearNeeds fc_needs = {}, LinearNeeds proj_needs = {});

}  // namespace castor
