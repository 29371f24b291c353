// The memory order of images: shape [N, C, H, W], elements as if [N, H, W, C]. Convolution and pooling work in it,
// because oneDNN's kernels then need no copies of activations and our own loops run along channels.
//
// Delicate: with one channel, or with one pixel, row-major and channels-last are the same bytes; both are taken as they
// are.
#pragma once

#include "core/ops/cast.h"
#include "core/tensor/tensor.h"

namespace castor {

/// Strides of a dense channels-last tensor of this shape [n, c, h, w].
inline Shape channels_last_strides(const Shape& shape) {
  const std::int64_t c = shape[1], h = shape[2], w = shape[3];
  return {h * w * c, 1, w * c, c};
}

/// New and uninitialised, channels-last.
inline Tensor empty_channels_last(const Shape& shape, DType dtype, Device device) {
  return Tensor::empty_strided(shape, channels_last_strides(shape), dtype, device);
}

/// True if the bytes of x [n, c, h, w] are those of a dense channels-last tensor.
inline bool is_channels_last(const Tensor& x) {
  const Shape strides = channels_last_strides(x.shape());
  if (x.numel() == 0) return true;
  for (int i = 0; i < 4; ++i) {
    if (x.shape()[i] != 1 && x.strides()[i] != strides[i]) return false;
  }
  return true;
}

/// x itself if it is channels-last (with canonical strides), otherwise a copy that is.
inline Tensor channels_last(const Tensor& x) {
  if (is_channels_last(x)) return x.as_strided(x.shape(), channels_last_strides(x.shape()), 0);
  Tensor y = empty_channels_last(x.shape(), x.dtype(), x.device());
  copy_into(x, y);
  return y;
}

/// The pixels of a channels-last tensor as rows: [n h w, c], a view.
inline Tensor pixel_rows(const Tensor& x) {
  return x.as_strided({x.size(0) * x.size(2) * x.size(3), x.size(1)}, {x.size(1), 1}, 0);
}

}  // namespace castor
