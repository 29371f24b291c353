// Modules over images [N, C, H, W]: convolution, the norms that go with it, pooling. Names, parameters and defaults are
// PyTorch's.
//
// Delicate: BatchNorm2d's running statistics are not written by forward but posted (buffer_update.h), so that a
// strategy can apply those of all ranks in the order of the micro-batches.
#pragma once

#include <array>

#include "autograd/nn/buffer_update.h"
#include "autograd/nn/layers.h"
#include "core/ops/conv.h"
#include "core/ops/pool.h"

namespace castor::autograd {

/// Two sizes, along H and W. A plain number converts: it stands for both.
struct Pair {
  std::int64_t h = 0;
  std::int64_t w = 0;
  Pair(std::int64_t both) : h(both), w(both) {}
  Pair(std::int64_t height, std::int64_t width) : h(height), w(width) {}
  friend bool operator==(const Pair&, const Pair&) = default;
};

/// What a convolution can be given beside its channels and kernel.
struct ConvOptions {
  Pair stride = 1;
  Pair padding = 0;
  Pair dilation = 1;
  std::int64_t groups = 1;
  bool bias = true;
  std::optional<Init> weight_init = {};  ///< unset: uniform in +-1/sqrt(fan_in)
  TensorOptions tensor = {};
};

/// Cross-correlation of images with learned kernels.
///   weight  [out_channels, in_channels / groups, kernel.h, kernel.w]
///   bias    [out_channels], if asked for
class Conv2d final : public Layer {
 public:
  /// Throws ConfigError unless groups divides both channel counts.
  Conv2d(std::int64_t in_channels, std::int64_t out_channels, Pair kernel, const ConvOptions& options = {});
  /// x [N, in_channels, H, W] -> [N, out_channels, H', W'], channels-last
  Variable forward(const Variable& x) override;
  /// activation(conv(x) + bias), in one pass.
  Variable forward(const Variable& x, Activation activation);

  const Variable& weight() const { return weight_; }
  const Variable& bias() const { return bias_; }  ///< undefined without one

 private:
  ConvGeometry geometry_;
  Variable weight_;
  Variable bias_;
};

/// Normalises each channel over the batch in training, by the running statistics in evaluation.
/// Source: Ioffe & Szegedy 2015, arXiv:1502.03167.
///   weight, bias               [num_features], ones and zeros
///   running_mean, running_var  buffers f32 [num_features]; new = (1 - momentum) old + momentum * batch
///   num_batches_tracked        buffer i64 []
/// The variance that joins running_var is the unbiased one. With TensorOptions::batch_norm_dtype the input is converted
/// to it and the result back.
class BatchNorm2d final : public Layer, public BufferOwner {
 public:
  explicit BatchNorm2d(std::int64_t num_features, double eps = 1e-5, double momentum = 0.1,
                       const TensorOptions& options = {});
  /// x [N, num_features, H, W]. Throws ShapeError in training for one value a channel.
  Variable forward(const Variable& x) override;
  /// max(0, norm(x) + residual) in one pass where the kernel can; `residual` may be undefined.
  Variable forward_relu(const Variable& x, const Variable& residual = {});
  void apply_update(const std::vector<Tensor>& statistics) override;

 private:
  Variable normalise(const Variable& x, const Variable& residual, bool relu);
  Variable normalise_as_is(const Variable& x, const Variable& residual, bool relu);  // x of the weights' dtype

  double eps_;
  double momentum_;
  Variable weight_;
  Variable bias_;
  Variable running_mean_;
  Variable running_var_;
  Variable num_batches_tracked_;
};

/// Normalises groups of channels of each sample. Source: Wu & He 2018, arXiv:1803.08494.
///   weight, bias  [num_channels], ones and zeros
class GroupNorm final : public Layer {
 public:
  /// Throws ConfigError unless num_groups divides num_channels.
  GroupNorm(std::int64_t num_groups, std::int64_t num_channels, double eps = 1e-5, const TensorOptions& options = {});
  /// x [N, num_channels, ...]
  Variable forward(const Variable& x) override;

 private:
  std::int64_t num_groups_;
  double eps_;
  Variable weight_;
  Variable bias_;
};

/// What a pooling can be given beside its kernel.
struct PoolOptions {
  std::optional<Pair> stride = {};  ///< unset = the kernel
  Pair padding = 0;                 ///< at most half the kernel
  Pair dilation = 1;                ///< MaxPool2d only
  bool ceil_mode = false;
  bool count_include_pad = true;  ///< AvgPool2d only
};

/// The maximum of each window.
class MaxPool2d final : public Layer {
 public:
  /// As core/ops/pool.h checks at the first forward.
  explicit MaxPool2d(Pair kernel, const PoolOptions& options = {});
  Variable forward(const Variable& x) override;

 private:
  PoolGeometry geometry_;
};

/// The average of each window.
class AvgPool2d final : public Layer {
 public:
  /// As core/ops/pool.h checks at the first forward.
  explicit AvgPool2d(Pair kernel, const PoolOptions& options = {});
  Variable forward(const Variable& x) override;

 private:
  PoolGeometry geometry_;
};

/// Averages over windows such that the result has `size` pixels; 1 is global average pooling.
class AdaptiveAvgPool2d final : public Layer {
 public:
  explicit AdaptiveAvgPool2d(Pair size) : size_{size.h, size.w} {}
  Variable forward(const Variable& x) override;

 private:
  Shape size_;
};

/// Maxima over windows such that the result has `size` pixels.
class AdaptiveMaxPool2d final : public Layer {
 public:
  explicit AdaptiveMaxPool2d(Pair size) : size_{size.h, size.w} {}
  Variable forward(const Variable& x) override;

 private:
  Shape size_;
};

}  // namespace castor::autograd
