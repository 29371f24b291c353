// Pooling loops: for each result pixel forward and for each image pixel backward, channels in chunks that stay in
// registers or L1.
//
// Delicate: backward gathers. Each pixel of dx sums over the windows that hold it, so threads share no element,
// overlapping windows sum in f32 in a fixed order, and nothing has to be zeroed first.
#include <algorithm>
#include <limits>

#include "core/base/parallel.h"
#include "core/ops/pool.h"

namespace castor {
namespace {

constexpr std::int64_t kChunk = 64;     // channels at a time
constexpr std::int64_t kGrain = 16384;  // elements that are worth a thread

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return a >= 0 ? (a + b - 1) / b : -(-a / b); }

/// Pixels first, first + step, ... below `last` of one axis; `extent` is the window's size with padding.
struct Window {
  std::int64_t first, last, step, extent;
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

  Window window(std::int64_t result) const {
    if (is_adaptive) {
      const std::int64_t first = result * size / count, last = ceil_div((result + 1) * size, count);
      return {first, last, 1, last - first};
    }
    const std::int64_t begin = result * stride - padding, end = begin + dilation * (kernel - 1) + 1;
    const std::int64_t first = begin < 0 ? begin + ceil_div(-begin, dilation) * dilation : begin;
    return {first, std::min(end, size), dilation, std::min(end, size + padding) - begin};
  }

  /// Results [first, second) whose windows reach over `pixel`; with dilation some of them step over it.
  std::pair<std::int64_t, std::int64_t> results(std::int64_t pixel) const {
    if (is_adaptive) return {pixel * count / size, std::min(count, ceil_div((pixel + 1) * count, size))};
    const std::int64_t reach = dilation * (kernel - 1);
    return {std::max<std::int64_t>(0, ceil_div(pixel + padding - reach, stride)),
            std::min(count, (pixel + padding) / stride + 1)};
  }

  bool holds(std::int64_t result, std::int64_t pixel) const {
    return is_adaptive || dilation == 1 || (pixel + padding - result * stride) % dilation == 0;
  }
};

/// The divisor of an average.
double divisor(const PoolWindows& windows, const Window& h, const Window& w) {
  if (windows.is_adaptive || windows.geometry.count_include_pad) return static_cast<double>(h.extent * w.extent);
  return static_cast<double>(std::max<std::int64_t>(1, (h.last - h.first) * (w.last - w.first)));
}

/// Calls f(row, first channel, channels) for rows [0, rows) shared by threads and chunks of the channels.
template <class F>
void for_each_row(std::int64_t rows, std::int64_t row_elements, F&& f) {
  parallel_for(rows, std::max<std::int64_t>(1, kGrain / std::max<std::int64_t>(1, row_elements)),
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t row = begin; row < end; ++row) f(row);
               });
}

template <class T>
void max_forward(const PoolArgs& args) {
  using S = decltype(load(T{}));
  const std::int64_t channels = args.x.size[1], height = args.x.size[2], width = args.x.size[3];
  const std::int64_t out_height = args.y.size[2], out_width = args.y.size[3];
  const WindowAxis vertical(args.windows, 0, height, out_height), horizontal(args.windows, 1, width, out_width);
  for_each_row(args.x.size[0] * out_height, out_width * channels * 4, [&](std::int64_t row) {
    const Window h = vertical.window(row % out_height);
    const T* const image = args.x.as<T>() + row / out_height * height * width * channels;
    for (std::int64_t ow = 0; ow < out_width; ++ow) {
      const Window w = horizontal.window(ow);
      const bool is_empty = h.first >= h.last || w.first >= w.last;
      const std::int64_t target = (row * out_width + ow) * channels;
      for (std::int64_t c = 0; c < channels; c += kChunk) {
        const std::int64_t count = std::min(kChunk, channels - c);
        S best[kChunk];
        std::int32_t at[kChunk];
        std::fill_n(best, count, -std::numeric_limits<S>::infinity());
        std::fill_n(at, count, is_empty ? -1 : static_cast<std::int32_t>(h.first * width + w.first));
        for (std::int64_t y = h.first; y < h.last; y += h.step) {
          for (std::int64_t x = w.first; x < w.last; x += w.step) {
            const T* const from = image + (y * width + x) * channels + c;
            const auto position = static_cast<std::int32_t>(y * width + x);
#pragma GCC ivdep
            for (std::int64_t j = 0; j < count; ++j) {
              const S value = load(from[j]);
              const bool is_taken = (value > best[j]) | (value != value);
              best[j] = is_taken ? value : best[j];
              at[j] = is_taken ? position : at[j];
            }
          }
        }
        T* const to = args.y.as<T>() + target + c;
        for (std::int64_t j = 0; j < count; ++j) to[j] = store<T>(best[j]);
        if (args.indices.defined()) std::copy_n(at, count, args.indices.as<std::int32_t>() + target + c);
      }
    }
  });
}

template <class T>
void average_forward(const PoolArgs& args) {
  using S = decltype(load(T{}));
  const std::int64_t channels = args.x.size[1], height = args.x.size[2], width = args.x.size[3];
  const std::int64_t out_height = args.y.size[2], out_width = args.y.size[3];
  const WindowAxis vertical(args.windows, 0, height, out_height), horizontal(args.windows, 1, width, out_width);
  for_each_row(args.x.size[0] * out_height, out_width * channels * 4, [&](std::int64_t row) {
    const Window h = vertical.window(row % out_height);
    const T* const image = args.x.as<T>() + row / out_height * height * width * channels;
    for (std::int64_t ow = 0; ow < out_width; ++ow) {
      const Window w = horizontal.window(ow);
      const S factor = static_cast<S>(divisor(args.windows, h, w));
      T* const to = args.y.as<T>() + (row * out_width + ow) * channels;
      for (std::int64_t c = 0; c < channels; c += kChunk) {
        const std::int64_t count = std::min(kChunk, channels - c);
        S sum[kChunk];
        std::fill_n(sum, count, S{});
        for (std::int64_t y = h.first; y < h.last; ++y) {
          for (std::int64_t x = w.first; x < w.last; ++x) {
            const T* const from = image + (y * width + x) * channels + c;
#pragma GCC ivdep
            for (std::int64_t j = 0; j < count; ++j) sum[j] += load(from[j]);
          }
        }
        for (std::int64_t j = 0; j < count; ++j) to[c + j] = store<T>(sum[j] / factor);
      }
    }
  });
}

/// dx = sum over the windows that hold a pixel of part(dy element, index element, pixel's position, divisor).
template <class T, bool kIsMax>
void backward(const PoolBackwardArgs& args) {
  using S = decltype(load(T{}));
  const std::int64_t channels = args.dx.size[1], height = args.dx.size[2], width = args.dx.size[3];
  const std::int64_t out_height = args.dy.size[2], out_width = args.dy.size[3];
  const WindowAxis vertical(args.windows, 0, height, out_height), horizontal(args.windows, 1, width, out_width);
  for_each_row(args.dx.size[0] * height, width * channels, [&](std::int64_t row) {
    const std::int64_t y = row % height, image = row / height;
    const auto [first_row, last_row] = vertical.results(y);
    for (std::int64_t x = 0; x < width; ++x) {
      const auto position = static_cast<std::int32_t>(y * width + x);
      const auto [first_column, last_column] = horizontal.results(x);
      T* const to = args.dx.as<T>() + (row * width + x) * channels;
      for (std::int64_t c = 0; c < channels; c += kChunk) {
        const std::int64_t count = std::min(kChunk, channels - c);
        S sum[kChunk];
        std::fill_n(sum, count, S{});
        for (std::int64_t oh = first_row; oh < last_row; ++oh) {
          if (!vertical.holds(oh, y)) continue;
          for (std::int64_t ow = first_column; ow < last_column; ++ow) {
            if (!horizontal.holds(ow, x)) continue;
            const std::int64_t source = ((image * out_height + oh) * out_width + ow) * channels + c;
            const T* const from = args.dy.as<T>() + source;
            if constexpr (kIsMax) {
              const std::int32_t* const at = args.indices.as<std::int32_t>() + source;
#pragma GCC ivdep
              for (std::int64_t j = 0; j < count; ++j) sum[j] += at[j] == position ? load(from[j]) : S{};
            } else {
              const S factor = static_cast<S>(divisor(args.windows, vertical.window(oh), horizontal.window(ow)));
#pragma GCC ivdep
              for (std::int64_t j = 0; j < count; ++j) sum[j] += load(from[j]) / factor;
            }
          }
        }
        for (std::int64_t j = 0; j < count; ++j) to[c + j] = store<T>(sum[j]);
      }
    }
  });
}

template <class F>
void visit_float(DType dtype, const char* op, F&& f) {
  dtype == DType::f64 ? f(TypeTag<double>{}) : visit_training_float(dtype, op, f);
}

}  // namespace

void run(const Cpu&, const PoolArgs& args) {
  if (args.y.numel() == 0) return;
  visit_float(args.x.dtype, PoolArgs::kName, [&](auto tag) {
    using T = typename decltype(tag)::type;
    args.kind == PoolKind::max ? max_forward<T>(args) : average_forward<T>(args);
  });
}

void run(const Cpu&, const PoolBackwardArgs& args) {
  if (args.dx.numel() == 0) return;
  visit_float(args.dx.dtype, PoolBackwardArgs::kName, [&](auto tag) {
    using T = typename decltype(tag)::type;
    args.kind == PoolKind::max ? backward<T, true>(args) : backward<T, false>(args);
  });
}

}  // namespace castor
