// Two-dimensional convolution and its gradients, as in PyTorch: cross-correlation with zero padding. Activations are
// computed channels-last (core/ops/channels_last.h): results have shape [N, C, H, W] and the strides of [N, H, W, C].
//
// Numerics: as in matmul.h; bf16 and f16 are converted to f32, convolved, and rounded once. oneDNN sums in an order
// that depends on sizes, threads and instruction set only.
#pragma once

#include "core/device/dispatch.h"
#include "core/ops/matmul.h"
#include "core/tensor/tensor.h"

namespace castor {

/// How the kernel moves over the image; [0] is vertical, [1] horizontal.
struct ConvGeometry {
  std::int64_t stride[2] = {1, 1};
  std::int64_t padding[2] = {0, 0};  ///< zeros on both sides
  std::int64_t dilation[2] = {1, 1};
  std::int64_t groups = 1;
};

/// y = x * weight + bias. x [n, c, h, w] and y [n, o, oh, ow] dense channels-last, weight [o, c / groups, kh, kw]
/// row-major, bias [o] dense or absent; one dtype: f32|f16|bf16|f64.
struct ConvArgs {
  static constexpr const char* kName = "conv2d";
  View x, weight, bias, y, workspace;
  ConvGeometry geometry;
};
Cost cost(const ConvArgs& args);
std::size_t workspace_bytes(const Cpu& cpu, const ConvArgs& args);
std::size_t workspace_bytes(const Cuda& cuda, const ConvArgs& args);
void run(const Cpu& cpu, const ConvArgs& args);
void run(const Cuda& cuda, const ConvArgs& args);

/// dx from dy and weight; layouts as in ConvArgs.
struct ConvBackwardDataArgs {
  static constexpr const char* kName = "conv2d_backward_data";
  View dy, weight, dx, workspace;
  ConvGeometry geometry;
};
Cost cost(const ConvBackwardDataArgs& args);
std::size_t workspace_bytes(const Cpu& cpu, const ConvBackwardDataArgs& args);
std::size_t workspace_bytes(const Cuda& cuda, const ConvBackwardDataArgs& args);
void run(const Cpu& cpu, const ConvBackwardDataArgs& args);
void run(const Cuda& cuda, const ConvBackwardDataArgs& args);

/// dweight from dy and x; layouts as in ConvArgs.
struct ConvBackwardWeightArgs {
  static constexpr const char* kName = "conv2d_backward_weight";
  View x, dy, dweight, workspace;
  ConvGeometry geometry;
};
Cost cost(const ConvBackwardWeightArgs& args);
std::size_t workspace_bytes(const Cpu& cpu, const ConvBackwardWeightArgs& args);
std::size_t workspace_bytes(const Cuda& cuda, const ConvBackwardWeightArgs& args);
void run(const Cpu& cpu, const ConvBackwardWeightArgs& args);
void run(const Cuda& cuda, const ConvBackwardWeightArgs& args);

/// activation(conv(x, weight) + bias).
///   x        f32|f16|bf16|f64 [n, c, h, w], any strides; copied unless channels-last
///   weight   [o, c / groups, kh, kw] of x's dtype
///   bias     [o] or undefined
///   saved    if given, receives what conv2d_backward needs of this call: the activation's input (undefined for none)
///   returns  [n, o, oh, ow] channels-last, oh = floor((h + 2 padding - dilation (kh - 1) - 1) / stride) + 1
/// Throws ShapeError if axes, channels or groups do not fit, a stride, dilation or group count is below 1, a padding is
/// negative, or the kernel is larger than the padded image; DTypeError; DeviceError.
Tensor conv2d(const Tensor& x, const Tensor& weight, const Tensor& bias = {}, const ConvGeometry& geometry = {},
              Activation activation = Activation::none, Tensor* saved = nullptr);

/// Which gradients conv2d_backward computes.
struct ConvNeeds {
  bool x = true, weight = true, bias = true;
};

/// Gradients of conv2d. Hands over `dy`: when nobody else holds it, its bytes are reused.
///   dy, x, weight  as in the forward call; `saved` as it gave
///   returns        dx channels-last, dweight row-major, dbias; undefined where not asked for
/// Throws ShapeError, DTypeError, DeviceError.
LinearGradients conv2d_backward(Tensor dy, const Tensor& x, const Tensor& weight, const Tensor& saved,
                                const ConvGeometry& geometry, Activation activation, ConvNeeds needs = {});

}  // namespace castor
