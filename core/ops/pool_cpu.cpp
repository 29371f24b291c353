// Pooling loops: for each result pixel forward and for each image pixel backward, channels in chunks that stay in
// registers or L1.
//
// Delicate: backward gathers. Each pixel of dx sums over the windows that hold it, so threads share no element,
// overlapping windows sum in f32 in a fixed order, and nothing has to be zeroed first.
#include <algorithm>
#include <limits>
#include <type_traits>
#include <utility>

#include "core/base/parallel.h"
#include "core/ops/pool_windows.h"

namespace castor {
namespace {

constexpr std::int64_t kChunk = 64;     // channels at a time
constexpr std::int64_t kGrain = 16384;  // elements that are worth a thread

/// Calls f(row) for rows [0, rows), shared by threads.
template <class F>
void for_each_row(std::int64_t rows, std::int64_t row_elements, F&& f) {
  parallel_for(rows, std::max<std::int64_t>(1, kGrain / std::max<std::int64_t>(1, row_elements)),
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t row = begin; row < end; ++row) f(row);
               });
}

/// Calls f(first channel, count) for chunks that cover the channels; count is a constant where it can be, so that a
/// chunk's accumulators are registers.
template <class F>
void for_each_chunk(std::int64_t channels, F&& f) {
  std::int64_t c = 0;
  for (; c + 32 <= channels; c += 32) f(c, std::integral_constant<std::int64_t, 32>{});
  for (; c + 8 <= channels; c += 8) f(c, std::integral_constant<std::int64_t, 8>{});
  if (c < channels) f(c, channels - c);
}

/// Zeroes a chunk's accumulators, eight at a time: one loop over all of them would become a call or a string
/// instruction, which costs more than the chunk.
template <class S>
void set_zero(S (&sum)[kChunk]) {
#pragma GCC unroll 4
  for (std::int64_t i = 0; i < kChunk; i += 8) {
    for (std::int64_t j = 0; j < 8; ++j) sum[i + j] = S{};
  }
}

/// What all loops share: the sizes and the windows.
struct PoolLoop {
  std::int64_t images, channels, height, width, out_height, out_width;
  WindowAxis vertical, horizontal;

  PoolLoop(const View& x, const View& y, const PoolWindows& windows)
      : images(x.size[0]),
        channels(x.size[1]),
        height(x.size[2]),
        width(x.size[3]),
        out_height(y.size[2]),
        out_width(y.size[3]),
        vertical(windows, 0, height, out_height),
        horizontal(windows, 1, width, out_width) {}

  /// Calls f(first element of the image, first element of the result pixel, vertical window, horizontal window).
  template <class F>
  void for_each_result(F&& f) const {
    for_each_row(images * out_height, out_width * channels * 4, [&](std::int64_t row) {
      const PoolWindow h = vertical.window(row % out_height);
      const std::int64_t image = row / out_height * height * width * channels;
      for (std::int64_t ow = 0; ow < out_width; ++ow)
        f(image, (row * out_width + ow) * channels, h, horizontal.window(ow));
    });
  }

  /// Calls f(vertical position, horizontal position, first element of the pixel, vertical results, horizontal results,
  /// first element of the image's result) for every pixel of the image.
  template <class F>
  void for_each_pixel(F&& f) const {
    for_each_row(images * height, width * channels, [&](std::int64_t row) {
      const std::int64_t y = row % height, result = row / height * out_height * out_width * channels;
      std::pair<std::int64_t, std::int64_t> rows{0, 0}, columns{0, 0};
      vertical.advance(rows, y);
      for (std::int64_t x = 0; x < width; ++x) {
        horizontal.advance(columns, x);
        f(y, x, (row * width + x) * channels, rows, columns, result);
      }
    });
  }
};

template <class T>
void max_forward(const PoolArgs& args) {
  using S = decltype(load(T{}));
  const PoolLoop loop(args.x, args.y, args.windows);
  loop.for_each_result([&](std::int64_t image, std::int64_t result, const PoolWindow& h, const PoolWindow& w) {
    const bool is_empty = h.first >= h.last || w.first >= w.last;
    const auto start = static_cast<std::int32_t>(is_empty ? -1 : h.first * loop.width + w.first);
    for_each_chunk(loop.channels, [&](std::int64_t c, auto count) {
      S best[kChunk];
      std::int32_t at[kChunk];
      for (std::int64_t j = 0; j < count; ++j) best[j] = -std::numeric_limits<S>::infinity();
      for (std::int64_t j = 0; j < count; ++j) at[j] = start;
      for (std::int64_t y = h.first; y < h.last; y += h.step) {
        for (std::int64_t x = w.first; x < w.last; x += w.step) {
          const T* const from = args.x.as<T>() + image + (y * loop.width + x) * loop.channels + c;
          const auto position = static_cast<std::int32_t>(y * loop.width + x);
          for (std::int64_t j = 0; j < count; ++j) {
            const S value = load(from[j]);
            const bool is_taken = (value > best[j]) | (value != value);
            best[j] = is_taken ? value : best[j];
            at[j] = is_taken ? position : at[j];
          }
        }
      }
      T* const to = args.y.as<T>() + result + c;
      for (std::int64_t j = 0; j < count; ++j) to[j] = store<T>(best[j]);
      if (!args.indices.defined()) return;
      std::int32_t* const positions = args.indices.as<std::int32_t>() + result + c;
      for (std::int64_t j = 0; j < count; ++j) positions[j] = at[j];
    });
  });
}

template <class T>
void average_forward(const PoolArgs& args) {
  using S = decltype(load(T{}));
  const PoolLoop loop(args.x, args.y, args.windows);
  loop.for_each_result([&](std::int64_t image, std::int64_t result, const PoolWindow& h, const PoolWindow& w) {
    const S factor = static_cast<S>(divisor(args.windows, h, w));
    for_each_chunk(loop.channels, [&](std::int64_t c, auto count) {
      S sum[kChunk];
      set_zero(sum);
      for (std::int64_t y = h.first; y < h.last; ++y) {
        for (std::int64_t x = w.first; x < w.last; ++x) {
          const T* const from = args.x.as<T>() + image + (y * loop.width + x) * loop.channels + c;
          for (std::int64_t j = 0; j < count; ++j) sum[j] += load(from[j]);
        }
      }
      T* const to = args.y.as<T>() + result + c;
      for (std::int64_t j = 0; j < count; ++j) to[j] = store<T>(sum[j] / factor);
    });
  });
}

template <class T, bool kIsMax>
void backward(const PoolBackwardArgs& args) {
  using S = decltype(load(T{}));
  const PoolLoop loop(args.dx, args.dy, args.windows);
  using Range = std::pair<std::int64_t, std::int64_t>;
  loop.for_each_pixel([&](std::int64_t y, std::int64_t x, std::int64_t pixel, const Range& rows, const Range& columns,
                          std::int64_t result) {
    const auto position = static_cast<std::int32_t>(y * loop.width + x);
    for_each_chunk(loop.channels, [&](std::int64_t c, auto count) {
      S sum[kChunk];
      set_zero(sum);
      for (std::int64_t oh = rows.first; oh < rows.second; ++oh) {
        if (!loop.vertical.holds(oh, y)) continue;
        for (std::int64_t ow = columns.first; ow < columns.second; ++ow) {
          if (!loop.horizontal.holds(ow, x)) continue;
          const std::int64_t source = result + (oh * loop.out_width + ow) * loop.channels + c;
          const T* const from = args.dy.as<T>() + source;
          if constexpr (kIsMax) {
            const std::int32_t* const at = args.indices.as<std::int32_t>() + source;
            for (std::int64_t j = 0; j < count; ++j) {
              const S value = load(from[j]);
              sum[j] += at[j] == position ? value : S{};
            }
          } else {
            const S factor =
                static_cast<S>(divisor(args.windows, loop.vertical.window(oh), loop.horizontal.window(ow)));
            for (std::int64_t j = 0; j < count; ++j) sum[j] += load(from[j]) / factor;
          }
        }
      }
      T* const to = args.dx.as<T>() + pixel + c;
      for (std::int64_t j = 0; j < count; ++j) to[j] = store<T>(sum[j]);
    });
  });
}

/// True if the windows tile the image from its first pixel on: every pixel lies in one window at most.
bool is_tiling(const PoolWindows& windows) {
  const PoolGeometry& g = windows.geometry;
  const auto tiles = [&](int axis) {
    return g.stride[axis] == g.kernel[axis] && g.padding[axis] == 0 && g.dilation[axis] == 1;
  };
  return !windows.is_adaptive && tiles(0) && tiles(1);
}

/// The same gradient where windows tile the image: each result pixel writes its window, the last of a row or column
/// also the zeros beyond it.
template <class T, bool kIsMax>
void backward_tiling(const PoolBackwardArgs& args) {
  using S = decltype(load(T{}));
  const PoolLoop loop(args.dx, args.dy, args.windows);
  loop.for_each_result([&](std::int64_t image, std::int64_t result, const PoolWindow& h, const PoolWindow& w) {
    const std::int64_t* const kernel = args.windows.geometry.kernel;
    const bool is_bottom = h.first == (loop.out_height - 1) * kernel[0],
               is_right = w.first == (loop.out_width - 1) * kernel[1];
    const std::int64_t bottom = is_bottom ? loop.height : h.last, right = is_right ? loop.width : w.last;
    const S factor = kIsMax ? S(1) : static_cast<S>(divisor(args.windows, h, w));
    T* const dx = args.dx.as<T>() + image;
    for (std::int64_t y = h.first; y < bottom; ++y) {
      const bool is_row_inside = y < h.last;
      for (std::int64_t x = w.first; x < right; ++x) {
        const bool is_inside = is_row_inside && x < w.last;
        const auto position = static_cast<std::int32_t>(y * loop.width + x);
        T* const to = dx + (y * loop.width + x) * loop.channels;
        if (!is_inside) {
          std::fill_n(to, loop.channels, T{});
          continue;
        }
        const T* const from = args.dy.as<T>() + result;
        const std::int32_t* const at = args.indices.as<std::int32_t>() + (kIsMax ? result : 0);
        for_each_chunk(loop.channels, [&](std::int64_t c, auto count) {
          T* const target = to + c;
          const T* const source = from + c;
          const std::int32_t* const positions = at + (kIsMax ? c : 0);
          for (std::int64_t j = 0; j < count; ++j) {
            const S value = load(source[j]);
            if constexpr (kIsMax) {
              target[j] = store<T>(positions[j] == position ? value : S{});
            } else {
              target[j] = store<T>(value / factor);
            }
          }
        });
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
    const bool is_max = args.kind == PoolKind::max;
    if (is_tiling(args.windows)) {
      is_max ? backward_tiling<T, true>(args) : backward_tiling<T, false>(args);
    } else {
      is_max ? backward<T, true>(args) : backward<T, false>(args);
    }
  });
}

}  // namespace castor
