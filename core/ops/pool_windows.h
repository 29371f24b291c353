// Which pixels a pooling window covers and which windows cover a pixel, along one axis: the geometry that the kernels
// of all devices share. Sizes are those of one axis; a window that starts in the padding holds the pixels that exist.
#pragma once

#include <algorithm>
#include <utility>

#include "core/base/host_device.h"
#include "core/ops/pool.h"

namespace castor {

/// a / b rounded up, for b > 0.
CASTOR_HOST_DEVICE std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return a >= 0 ? (a + b - 1) / b : -(-a / b);
}

/// Pixels first, first + step, ... below `last` of one axis; `extent` is the window's size with padding.
struct PoolWindow {
  std::int64_t first, last, step, extent;
};

/// Results [first, last) of one axis.
struct ResultRange {
  std::int64_t first, last;
};

/// One axis of the windows: which pixels a result covers, and which results cover a pixel.
struct WindowAxis {
  std::int64_t size, count;  ///< pixels, results
  std::int64_t kernel, stride, padding, dilation;
  bool is_adaptive;

  WindowAxis(const PoolWindows& windows, int axis, std::int64_t pixels, std::int64_t results)
      : size(pixels),
        count(results),
        kernel(windows.geometry.kernel[axis]),
        stride(windows.geometry.stride[axis]),
        padding(windows.geometry.padding[axis]),
        dilation(windows.geometry.dilation[axis]),
        is_adaptive(windows.is_adaptive) {}

  CASTOR_HOST_DEVICE PoolWindow window(std::int64_t result) const {
    if (is_adaptive) {
      const std::int64_t first = result * size / count, last = ceil_div((result + 1) * size, count);
      return {first, last, 1, last - first};
    }
    const std::int64_t begin = result * stride - padding, end = begin + dilation * (kernel - 1) + 1;
    const std::int64_t first = begin < 0 ? begin + ceil_div(-begin, dilation) * dilation : begin;
    return {first, std::min(end, size), dilation, std::min(end, size + padding) - begin};
  }

  /// The results whose windows reach over `pixel`. With dilation some of them step over it.
  CASTOR_HOST_DEVICE ResultRange results(std::int64_t pixel) const {
    if (is_adaptive) return {pixel * count / size, std::min(count, ceil_div((pixel + 1) * count, size))};
    const std::int64_t first = ceil_div(pixel + padding - dilation * (kernel - 1), stride);
    return {first < 0 ? 0 : first, std::min(count, (pixel + padding) / stride + 1)};
  }

  /// The same for pixels that come in order, without a division: moves `results`, {0, 0} at first; pixels must not
  /// fall.
  void advance(std::pair<std::int64_t, std::int64_t>& results, std::int64_t pixel) const {
    auto& [first, last] = results;
    if (is_adaptive) {
      while (first < count && (first + 1) * size <= pixel * count) ++first;
      while (last < count && last * size < (pixel + 1) * count) ++last;
      return;
    }
    while (first < count && first * stride - padding + dilation * (kernel - 1) < pixel) ++first;
    while (last < count && last * stride - padding <= pixel) ++last;
  }

  /// False where dilation steps over `pixel`.
  CASTOR_HOST_DEVICE bool holds(std::int64_t result, std::int64_t pixel) const {
    return is_adaptive || dilation == 1 || (pixel + padding - result * stride) % dilation == 0;
  }
};

/// The divisor of an average.
CASTOR_HOST_DEVICE double divisor(const PoolWindows& windows, const PoolWindow& h, const PoolWindow& w) {
  if (windows.is_adaptive || windows.geometry.count_include_pad) return static_cast<double>(h.extent * w.extent);
  return static_cast<double>(std::max<std::int64_t>(1, (h.last - h.first) * (w.last - w.first)));
}

}  // namespace castor
