// Pooling of images: maximum and average over windows, with fixed geometry or adaptive to a result size. Everything is
// computed channels-last (core/ops/channels_last.h); loops run along channels. Rules are PyTorch's.
//
// Numerics: f32, f16 and bf16 sum in f32 in a fixed order and round once. NaN wins a maximum. Ties take the first
// position.
#pragma once

#include "core/device/dispatch.h"
#include "core/tensor/tensor.h"

namespace castor {

enum class PoolKind : std::uint8_t { max, average };

/// Windows of fixed size; [0] is vertical, [1] horizontal.
struct PoolGeometry {
  std::int64_t kernel[2] = {2, 2};
  std::int64_t stride[2] = {2, 2};
  std::int64_t padding[2] = {0, 0};   ///< at most half the kernel; never a maximum
  std::int64_t dilation[2] = {1, 1};  ///< maximum only
  bool ceil_mode = false;         ///< round the result's size up; the last window still starts inside image or padding
  bool count_include_pad = true;  ///< average only: padding counts in the divisor
};

/// What a kernel needs to know of the windows. `is_adaptive`: result pixel i of `out` covers floor(i size / out) to
/// ceil((i + 1) size / out), and `geometry` is ignored.
struct PoolWindows {
  PoolGeometry geometry;
  bool is_adaptive = false;
};

/// y = pooled x; both channels-last, f32|f16|bf16|f64. `indices` (maximum only) i32 like y: h * width + w of the
/// maximum.
struct PoolArgs {
  static constexpr const char* kName = "pool2d";
  View x, y, indices;
  PoolWindows windows;
  PoolKind kind;
};
Cost cost(const PoolArgs& args);
void run(const Cpu& cpu, const PoolArgs& args);
void run(const Cuda& cuda, const PoolArgs& args);

/// dx from dy (and indices for maximum); layouts as in PoolArgs.
struct PoolBackwardArgs {
  static constexpr const char* kName = "pool2d_backward";
  View dy, indices, dx;
  PoolWindows windows;
  PoolKind kind;
};
Cost cost(const PoolBackwardArgs& args);
void run(const Cpu& cpu, const PoolBackwardArgs& args);
void run(const Cuda& cuda, const PoolBackwardArgs& args);

/// The maximum over windows.
///   x        f32|f16|bf16|f64 [n, c, h, w], any strides; copied unless channels-last
///   indices  if given, receives i32 of the result's shape: the position h * width + w that each maximum came from
///   returns  [n, c, oh, ow] channels-last, oh = floor((h + 2 padding - dilation (kernel - 1) - 1) / stride) + 1 (or
///   ceil)
/// Throws ShapeError for other than 4 axes, a geometry outside the rules above, or windows larger than the padded
/// image; DTypeError.
Tensor max_pool2d(const Tensor& x, const PoolGeometry& geometry, Tensor* indices = nullptr);

/// The mean over windows; arguments and errors as for max_pool2d, and dilation must be 1.
Tensor avg_pool2d(const Tensor& x, const PoolGeometry& geometry);

/// The maximum over `size` = {oh, ow} windows that cover the image. Throws ShapeError if a size is below 1 or x has no
/// pixel.
Tensor adaptive_max_pool2d(const Tensor& x, const Shape& size, Tensor* indices = nullptr);

/// The mean over `size` = {oh, ow} windows that cover the image; {1, 1} is the mean of each channel.
Tensor adaptive_avg_pool2d(const Tensor& x, const Shape& size);

/// Gradients. `shape` is x's; the others are as in (or from) the forward call. The result is channels-last.
Tensor max_pool2d_backward(const Tensor& dy, const Tensor& indices, const Shape& shape, const PoolGeometry& geometry);
Tensor avg_pool2d_backward(const Tensor& dy, const Shape& shape, const PoolGeometry& geometry);
Tensor adaptive_max_pool2d_backward(const Tensor& dy, const Tensor& indices, const Shape& shape);
Tensor adaptive_avg_pool2d_backward(const Tensor& dy, const Shape& shape);

}  // namespace castor
