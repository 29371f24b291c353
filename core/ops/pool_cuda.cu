// Pooling on CUDA: a thread a word of 16 bytes of the result (neighbouring channels of a pixel), forward and backward,
// or one element where channels or addresses do not fit. Backward gathers, as on the CPU: each pixel of dx sums over
// the windows that hold it, in their order.
//
// Delicate: a block of threads belongs to one row of pixels, so that indices within a row are of 32 bits and only the
// start of a row needs 64.
#include <limits>

#include "core/ops/pool_windows.h"
#include "core/ops/row_packs_cuda.cuh"

namespace castor {
namespace {

constexpr int kThreads = 256;
constexpr unsigned kMostTiles = 65535;  // of a row

/// The image x (or its gradient) and the pooled image y (or its gradient).
struct Sizes {
  std::int64_t rows;  ///< of the image that is written, over all images
  std::int64_t height, width, out_height, out_width;
  std::uint32_t channels;
  WindowAxis vertical, horizontal;

  Sizes(const View& x, const View& y, const PoolWindows& windows, bool is_forward)
      : rows(x.size[0] * (is_forward ? y.size[2] : x.size[2])),
        height(x.size[2]),
        width(x.size[3]),
        out_height(y.size[2]),
        out_width(y.size[3]),
        channels(static_cast<std::uint32_t>(x.size[1])),
        vertical(windows, 0, x.size[2], y.size[2]),
        horizontal(windows, 1, x.size[3], y.size[3]) {}
};

/// Calls f(column, first channel, first element of the row) for this thread's words of V elements in a row of `width`
/// pixels.
template <int V, class F>
__device__ void for_each_word(std::int64_t width, std::uint32_t channels, F f) {
  const std::uint32_t words = channels / V, count = static_cast<std::uint32_t>(width) * words;
  for (std::uint32_t word = blockIdx.y * kThreads + threadIdx.x; word < count; word += gridDim.y * kThreads) {
    const std::uint32_t column = word / words;
    f(static_cast<std::int64_t>(column), (word - column * words) * V, word * V);
  }
}

/// Positions of maxima, in words of at most 16 bytes.
template <int V>
struct Positions {
  static constexpr int kWord = V < 4 ? V : 4;
  std::int32_t value[V];

  __device__ void read(const std::int32_t* from) {
    for (int first = 0; first < V; first += kWord) {
      const cuda::Pack<std::int32_t, kWord> word = cuda::pack_at<kWord>(from + first);
      for (int e = 0; e < kWord; ++e) value[first + e] = word.value[e];
    }
  }
  __device__ void write(std::int32_t* to) const {
    for (int first = 0; first < V; first += kWord) {
      cuda::Pack<std::int32_t, kWord> word;
      for (int e = 0; e < kWord; ++e) word.value[e] = value[first + e];
      cuda::store_pack(to + first, word);
    }
  }
};

template <int V, class T>
__global__ void __launch_bounds__(kThreads)
    max_forward(const __grid_constant__ Sizes s, const T* x, T* y, std::int32_t* indices) {
  using C = decltype(load(T{}));
  const std::int64_t row = blockIdx.x, image = row / s.out_height;
  const PoolWindow h = s.vertical.window(row - image * s.out_height);
  const T* const from = x + image * s.height * s.width * s.channels;
  const std::int64_t to = row * s.out_width * s.channels;
  for_each_word<V>(s.out_width, s.channels, [&](std::int64_t column, std::uint32_t channel, std::uint32_t e) {
    const PoolWindow w = s.horizontal.window(column);
    const bool is_empty = h.first >= h.last || w.first >= w.last;
    C best[V];
    Positions<V> at;
    for (int k = 0; k < V; ++k) {
      best[k] = -std::numeric_limits<C>::infinity();
      at.value[k] = static_cast<std::int32_t>(is_empty ? -1 : h.first * s.width + w.first);
    }
    for (std::int64_t i = h.first; i < h.last; i += h.step) {
      for (std::int64_t j = w.first; j < w.last; j += w.step) {
        const std::int64_t position = i * s.width + j;
        const cuda::Pack<T, V> pack = cuda::pack_at<V>(from + position * s.channels + channel);
        for (int k = 0; k < V; ++k) {
          const C value = cuda::read(pack.value[k]);
          const bool is_taken = value > best[k] || value != value;
          best[k] = is_taken ? value : best[k];
          at.value[k] = is_taken ? static_cast<std::int32_t>(position) : at.value[k];
        }
      }
    }
    cuda::store_pack(y + to + e, cuda::rounded<T, V>(best));
    if (indices != nullptr) at.write(indices + to + e);
  });
}

template <int V, class T>
__global__ void __launch_bounds__(kThreads)
    average_forward(const __grid_constant__ Sizes s, const __grid_constant__ PoolWindows windows, const T* x, T* y) {
  using C = decltype(load(T{}));
  const std::int64_t row = blockIdx.x, image = row / s.out_height;
  const PoolWindow h = s.vertical.window(row - image * s.out_height);
  const T* const from = x + image * s.height * s.width * s.channels;
  const std::int64_t to = row * s.out_width * s.channels;
  for_each_word<V>(s.out_width, s.channels, [&](std::int64_t column, std::uint32_t channel, std::uint32_t e) {
    const PoolWindow w = s.horizontal.window(column);
    C sum[V] = {};
    for (std::int64_t i = h.first; i < h.last; ++i) {
      for (std::int64_t j = w.first; j < w.last; ++j) {
        const cuda::Pack<T, V> pack = cuda::pack_at<V>(from + (i * s.width + j) * s.channels + channel);
        for (int k = 0; k < V; ++k) sum[k] += cuda::read(pack.value[k]);
      }
    }
    const C factor = static_cast<C>(divisor(windows, h, w));
    for (int k = 0; k < V; ++k) sum[k] /= factor;
    cuda::store_pack(y + to + e, cuda::rounded<T, V>(sum));
  });
}

template <bool kIsMax, int V, class T>
__global__ void __launch_bounds__(kThreads)
    backward(const __grid_constant__ Sizes s, const __grid_constant__ PoolWindows windows, const T* dy,
             const std::int32_t* indices, T* dx) {
  using C = decltype(load(T{}));
  const std::int64_t row = blockIdx.x, image = row / s.height, y = row - image * s.height;
  const ResultRange rows = s.vertical.results(y);
  const std::int64_t from = image * s.out_height * s.out_width * s.channels, to = row * s.width * s.channels;
  for_each_word<V>(s.width, s.channels, [&](std::int64_t x, std::uint32_t channel, std::uint32_t e) {
    const ResultRange columns = s.horizontal.results(x);
    const auto position = static_cast<std::int32_t>(y * s.width + x);
    C sum[V] = {};
    for (std::int64_t i = rows.first; i < rows.last; ++i) {
      if (!s.vertical.holds(i, y)) continue;
      for (std::int64_t j = columns.first; j < columns.last; ++j) {
        if (!s.horizontal.holds(j, x)) continue;
        const std::int64_t at = from + (i * s.out_width + j) * s.channels + channel;
        const cuda::Pack<T, V> pack = cuda::pack_at<V>(dy + at);
        if constexpr (kIsMax) {
          Positions<V> positions;
          positions.read(indices + at);
          for (int k = 0; k < V; ++k) sum[k] += positions.value[k] == position ? cuda::read(pack.value[k]) : C(0);
        } else {
          const C factor = static_cast<C>(divisor(windows, s.vertical.window(i), s.horizontal.window(j)));
          for (int k = 0; k < V; ++k) sum[k] += cuda::read(pack.value[k]) / factor;
        }
      }
    }
    cuda::store_pack(dx + to + e, cuda::rounded<T, V>(sum));
  });
}

/// A block of threads for each 256 words of `width` elements in a row of `pixels`.
dim3 grid(const Sizes& s, std::int64_t pixels, int width) {
  const std::int64_t elements = pixels * s.channels;
  if (elements > std::numeric_limits<std::int32_t>::max() || s.rows > std::numeric_limits<std::int32_t>::max()) {
    throw ShapeError(cat("pool2d: on CUDA a row of pixels has at most 2^31 - 1 numbers and a batch as many rows, got ",
                         elements, " and ", s.rows, "; pool fewer images at a time"));
  }
  const auto tiles = static_cast<unsigned>((elements / width + kThreads - 1) / kThreads);
  return dim3(static_cast<unsigned>(s.rows), std::min(tiles, kMostTiles));
}

/// Calls f(an element type's tag, the number of elements in a word as a type).
template <class F>
void visit_words(const char* op, const View& x, std::int64_t channels, std::initializer_list<const View*> views,
                 F&& f) {
  bool fits = channels % static_cast<std::int64_t>(16 / dtype_size(x.dtype)) == 0;
  for (const View* view : views) {
    fits = fits && (!view->defined() || reinterpret_cast<std::uintptr_t>(view->data) % 16 == 0);
  }
  const auto compute = [&](auto tag) {
    using T = typename decltype(tag)::type;
    fits ? f(tag, std::integral_constant<int, cuda::kPackWidth<T>>{}) : f(tag, std::integral_constant<int, 1>{});
  };
  x.dtype == DType::f64 ? compute(TypeTag<double>{}) : visit_training_float(x.dtype, op, compute);
}

}  // namespace

void run(const Cuda& cuda, const PoolArgs& args) {
  if (args.y.numel() == 0) return;
  const Sizes sizes(args.x, args.y, args.windows, true);
  visit_words(PoolArgs::kName, args.x, sizes.channels, {&args.x, &args.y, &args.indices}, [&](auto tag, auto width) {
    using T = typename decltype(tag)::type;
    constexpr int kWidth = decltype(width)::value;
    const dim3 blocks = grid(sizes, sizes.out_width, kWidth);
    if (args.kind == PoolKind::max) {
      max_forward<kWidth><<<blocks, kThreads, 0, stream_of(cuda)>>>(sizes, args.x.as<const T>(), args.y.as<T>(),
                                                                    args.indices.as<std::int32_t>());
    } else {
      average_forward<kWidth>
          <<<blocks, kThreads, 0, stream_of(cuda)>>>(sizes, args.windows, args.x.as<const T>(), args.y.as<T>());
    }
  });
  check_cuda(cudaGetLastError(), PoolArgs::kName, cuda.device);
}

void run(const Cuda& cuda, const PoolBackwardArgs& args) {
  if (args.dx.numel() == 0) return;
  const Sizes sizes(args.dx, args.dy, args.windows, false);
  visit_words(PoolBackwardArgs::kName, args.dx, sizes.channels, {&args.dx, &args.dy, &args.indices},
              [&](auto tag, auto width) {
                using T = typename decltype(tag)::type;
                constexpr int kWidth = decltype(width)::value;
                const auto launch = [&](auto kernel) {
                  kernel<<<grid(sizes, sizes.width, kWidth), kThreads, 0, stream_of(cuda)>>>(
                      sizes, args.windows, args.dy.as<T>(), args.indices.as<std::int32_t>(), args.dx.as<T>());
                };
                args.kind == PoolKind::max ? launch(backward<true, kWidth, T>) : launch(backward<false, kWidth, T>);
              });
  check_cuda(cudaGetLastError(), PoolBackwardArgs::kName, cuda.device);
}

}  // namespace castor
