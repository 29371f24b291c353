// Modules over images [N, C, H, W]: convolution, the norms that go with it, pooling. Names, parameters and defaults are
// PyTorch's.
//
// Delicate: BatchNorm2d's running statistics are not written by forward but posted (buffer_update.h), so that a strategy can apply those
// of all ranks in the order of the micro-batches.
#pragma once

#include <array>

#include "autograd/nn/buffer_update.h"
#include "autograd/nn/layers.h"

namespace castor::autograd {

/// Two sizes, along H and W; one number stands for both.
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
  /// x [N, in_channels, H, W] -> [N, out_channels, H', W']
  Variable forward(const Variable& x) override;

  const Variable& weight() const { return weight_; }
  const Variable& bias() const { return bias_; }  ///< undefined without one

 private:
  ConvOptions options_;
  Variable weight_;
  Variable bias_;
};

/// Normalises each channel over the batch in training, by the running statistics in evaluation.
/// Source: Ioffe & Szegedy 2015, arXiv:1502.03167.
///   weight, bias               [num_features], ones and zeros
///   running_mean, running_var  buffers f32 [num_features]; new = (1 - momentum) old + momentum * batch (the variance unbiased)
///   num_batches_tracked        buffer i64 []
class BatchNorm2d final : public Layer, public BufferOwner {
 public:
  explicit BatchNorm2d(std::int64_t num_features, double eps = 1e-5, double momentum = 0.1, const TensorOptions& options = {});
  /// x [N, num_features, H, W]. Throws ShapeError in training for one value a channel.
  Variable forward(const Variable& x) override;
  /// max(0, norm(x) + residual) in one pass where the kernel can; `residual` may be undefined.
  Variable forward_relu(const Variable& x, const Variable& residual = {});
  void apply_update(const std::vector<Tensor>& statistics) override;

 private:
  Variable normalise(const Variable& x, const Variable& residual, bool relu);

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

}  // namespace castor::autograd
