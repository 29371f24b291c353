// The activations of linear and conv2d on CUDA, and their gradient with the column sums of the bias's. Memory binds
// both: words of 16 bytes, several rows in flight, every operand once. A block of threads owns a fixed block of rows
// and leaves one line of sums; a second kernel adds the lines in f64. Blocks are large and few, so that there are
// few lines.
//
// Delicate: what a block owns depends on the shape and the dtype alone, not on addresses.
#include <algorithm>

#include "core/ops/activation_cuda.cuh"
#include "core/ops/fp8_cuda.cuh"
#include "core/ops/line_sums_cuda.cuh"
#include "core/ops/row_packs_cuda.cuh"

namespace castor {
namespace {

using cuda::Computed;
using cuda::visit_activation;
using cuda::visit_float;

constexpr int kThreads = 256;
constexpr int kPacksAThread = 2;
/// Of the gradient's blocks; the exact functions in f64 need many registers.
template <class T>
constexpr int kBlockThreads = sizeof(T) == 8 ? 256 : 1024;

/// y[i] = f(x[i]) for packs of V and what is left behind the last one; y may be x.
template <class F, int V, class T>
__global__ void __launch_bounds__(kThreads) activate(const T* x, T* y, std::int64_t count) {
  using C = Computed<T>;
  const std::int64_t packs = count / V;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * (kThreads * kPacksAThread) + threadIdx.x;
  cuda::Pack<T, V> held[kPacksAThread];
#pragma unroll
  for (int k = 0; k < kPacksAThread; ++k) {
    if (first + k * kThreads < packs) held[k] = cuda::pack_at<V>(x + (first + k * kThreads) * V);
  }
#pragma unroll
  for (int k = 0; k < kPacksAThread; ++k) {
    const std::int64_t pack = first + k * kThreads;
    if (pack < packs) {
      C values[V];
      const auto own = cuda::numbers(held[k]);
      for (int e = 0; e < V; ++e) values[e] = F::value(own.value[e], C(0), C(0));
      cuda::store_pack(y + pack * V, cuda::rounded<T, V>(values));
    } else if (pack == packs) {
      for (std::int64_t i = packs * V; i < count; ++i) y[i] = cuda::write<T>(F::value(cuda::read(x[i]), C(0), C(0)));
    }
  }
}

template <class F, int V, class T>
void launch_activate(const Cuda& cuda, const T* x, T* y, std::int64_t count) {
  const std::int64_t per_block = kThreads * kPacksAThread;
  const std::int64_t groups = (count + V - 1) / V, blocks = (groups + per_block - 1) / per_block;
  activate<F, V><<<static_cast<unsigned>(blocks), kThreads, 0, stream_of(cuda)>>>(x, y, count);
}

/// How a gradient's rows and columns are given to blocks. A row of a block's threads spans as many columns as fit in 32
/// words of 16 bytes, fewer where n has fewer; the rows are cut into `count` parts whose sizes differ by one at most.
struct RowBlocks {
  static constexpr std::int64_t kRowsAThread = 4;  ///< at least, on the average
  static constexpr std::int64_t kPlaces = 132;     ///< blocks that a large GPU holds at a time
  std::int64_t count;

  explicit RowBlocks(const View& dy) {
    const auto width = static_cast<std::int64_t>(16 / dtype_size(dy.dtype));
    const std::int64_t rows = dy.size[0], n = dy.size[1], words = n % width == 0 ? n / width : n;
    const std::int64_t lanes = lanes_for(words), tiles = (words + lanes - 1) / lanes;
    const std::int64_t places = kPlaces * (kBlockThreads<float> / threads_for(dy.dtype));
    // The fewest waves that leave less than a tenth of the places empty.
    std::int64_t waves = 1;
    while (waves < 4 && waves * places / tiles * tiles * 10 < waves * places * 9) ++waves;
    const std::int64_t rows_at_once = threads_for(dy.dtype) / lanes;
    count = std::clamp<std::int64_t>(rows / (kRowsAThread * rows_at_once), 1,
                                     std::max<std::int64_t>(waves * places / tiles, 1));
  }

  static int threads_for(DType dtype) { return dtype == DType::f64 ? kBlockThreads<double> : kBlockThreads<float>; }

  /// Threads along a row of `words` words: a power of two.
  static int lanes_for(std::int64_t words) {
    int lanes = 1;
    while (lanes < 32 && lanes < words) lanes *= 2;
    return lanes;
  }
};

template <class T>
struct Backward {
  using C = Computed<T>;
  const T *dy, *saved;
  T* dx;         ///< nullptr where there is no activation
  T* y;          ///< for the activation's result; usually nullptr
  C* lines;      ///< [row blocks, n]; nullptr where no sums are wanted
  float* scale;  ///< of dx in 8 bits; nullptr where it is not wanted
  int top_exponent;
  std::int64_t rows, n, row_blocks;
  std::uint32_t tiles;  ///< of columns
};

/// One tile of columns of one block of rows. Where computing takes long beside memory, which it does for activations in
/// 16 bits, a thread reads its next row before it computes with this one; elsewhere the block's other threads are
/// enough, and it reads several rows at once.
template <class F, bool kHasActivation, int V, class T>
__global__ void __launch_bounds__(kBlockThreads<T>, 1) backward_block(const Backward<T> args) {
  using C = Computed<T>;
  using Row = cuda::Pack<T, V>;
  constexpr bool kReadsAhead = kHasActivation && sizeof(T) == 2;
  constexpr int kRowsAtOnce = kReadsAhead ? 1 : kHasActivation ? 2 : 4;
  __shared__ C parts[kBlockThreads<T> * V];
  const int lanes = static_cast<int>(blockDim.x), groups = static_cast<int>(blockDim.y);
  const std::uint32_t block = blockIdx.x / args.tiles, tile = blockIdx.x - block * args.tiles;
  const std::int64_t n = args.n, column = (static_cast<std::int64_t>(tile) * lanes + threadIdx.x) * V;
  const std::int64_t first = args.rows * block / args.row_blocks + threadIdx.y;
  const std::int64_t rows = args.rows * (block + 1) / args.row_blocks - first;
  // This thread's rows, `groups` apart.
  const int count = column < n && rows > 0 ? static_cast<int>((rows + groups - 1) / groups) : 0;
  const std::int64_t start = first * n + column, pitch = groups * n;
  C sums[V] = {};
  std::uint32_t largest = 0;
  struct Rows {
    Row dy[kRowsAtOnce], saved[kHasActivation ? kRowsAtOnce : 1];
  };
  const auto read_rows = [&](Rows& to, int row) {
#pragma unroll
    for (int k = 0; k < kRowsAtOnce; ++k) {
      if (row + k >= count) break;
      const std::int64_t at = start + (row + k) * pitch;
      to.dy[k] = cuda::pack_at<V>(args.dy + at);
      if constexpr (kHasActivation) to.saved[k] = cuda::pack_at<V>(args.saved + at);
    }
  };
  Rows now, next;
  if constexpr (kReadsAhead) read_rows(now, 0);
#pragma unroll 1
  for (int row = 0; row < count; row += kRowsAtOnce) {
    if constexpr (kReadsAhead) {
      read_rows(next, row + kRowsAtOnce);
    } else {
      read_rows(now, row);
    }
#pragma unroll
    for (int k = 0; k < kRowsAtOnce; ++k) {
      if (row + k >= count) break;
      const std::int64_t at = start + (row + k) * pitch;
      const auto dy = cuda::numbers(now.dy[k]), x = cuda::numbers(now.saved[kHasActivation ? k : 0]);
      C values[V];
      if constexpr (kHasActivation) {
        if (args.y != nullptr) {
          for (int e = 0; e < V; ++e) values[e] = F::value(x.value[e], C(0), C(0));
          cuda::store_pack(args.y + at, cuda::rounded<T, V>(values));
        }
      }
      for (int e = 0; e < V; ++e) {
        values[e] = dy.value[e];
        if constexpr (kHasActivation) values[e] *= F::slope(x.value[e], x.value[e], C(0), C(0));
        sums[e] += values[e];
      }
      const Row dx = cuda::rounded<T, V>(values);  // without an activation dy, as it was
      if constexpr (kHasActivation) cuda::store_pack(args.dx + at, dx);
      if constexpr (!std::is_same_v<T, double>) {
        if (args.scale != nullptr) {
          const auto rounded = cuda::numbers(dx);
          for (int e = 0; e < V; ++e) largest = max(largest, magnitude_bits(rounded.value[e]));
        }
      }
    }
    if constexpr (kReadsAhead) now = next;
  }
  if (args.scale != nullptr) cuda::finish_fp8_scale(largest, args.scale, args.top_exponent);
  if (args.lines == nullptr) return;
  for (int e = 0; e < V; ++e) parts[(threadIdx.y * lanes + threadIdx.x) * V + e] = sums[e];
  __syncthreads();
  // A thread a column: the rows of threads in order.
  const std::int64_t begin = static_cast<std::int64_t>(tile) * lanes * V;
  for (int j = static_cast<int>(threadIdx.y) * lanes + static_cast<int>(threadIdx.x); j < lanes * V && begin + j < n;
       j += lanes * groups) {
    C sum = parts[j];
    for (int group = 1; group < groups; ++group) sum += parts[group * lanes * V + j];
    args.lines[block * n + begin + j] = sum;
  }
}

template <class F, bool kHasActivation, int V, class T>
void launch_backward(const Cuda& cuda, Backward<T> args, const RowBlocks& blocks) {
  const int lanes = RowBlocks::lanes_for((args.n + V - 1) / V);
  args.row_blocks = blocks.count;
  args.tiles = static_cast<std::uint32_t>((args.n + lanes * V - 1) / (lanes * V));
  const dim3 threads(lanes, kBlockThreads<T> / lanes);
  backward_block<F, kHasActivation, V>
      <<<static_cast<unsigned>(blocks.count * args.tiles), threads, 0, stream_of(cuda)>>>(args);
}

template <class F, bool kHasActivation, class T>
void launch_backward(const Cuda& cuda, const Backward<T>& args, const RowBlocks& blocks, bool fits) {
  fits ? launch_backward<F, kHasActivation, cuda::kPackWidth<T>>(cuda, args, blocks)
       : launch_backward<F, kHasActivation, 1>(cuda, args, blocks);
}

}  // namespace

void run(const Cuda& cuda, const ActivationArgs& args) {
  const std::int64_t count = args.x.numel();
  if (count == 0) return;
  visit_float(args.x.dtype, ActivationArgs::kName, [&](auto tag) {
    using T = typename decltype(tag)::type;
    visit_activation<T>(args.activation, [&](auto f) {
      using F = decltype(f);
      const T* const x = args.x.as<T>();
      T* const y = args.y.as<T>();
      cuda::rows_fit(0, {&args.x, &args.y}) ? launch_activate<F, cuda::kPackWidth<T>>(cuda, x, y, count)
                                            : launch_activate<F, 1>(cuda, x, y, count);
    });
  });
  check_cuda(cudaGetLastError(), ActivationArgs::kName, cuda.device);
}

std::size_t workspace_bytes(const Cuda&, const BiasBackwardArgs& args) {
  if (!args.dbias.defined() || args.dy.numel() == 0) return 0;
  const std::size_t sum_bytes = args.dy.dtype == DType::f64 ? sizeof(double) : sizeof(float);
  return static_cast<std::size_t>(RowBlocks(args.dy).count * args.dy.size[1]) * sum_bytes;
}

void run(const Cuda& cuda, const BiasBackwardArgs& args) {
  const std::int64_t rows = args.dy.size[0], n = args.dy.size[1];
  if (args.scale.defined()) cuda::start_fp8_scale(cuda, BiasBackwardArgs::kName, args.scale.data);
  if (args.scale.defined() && args.dy.numel() == 0) run(cuda, Fp8ScaleArgs{args.dy, args.scale, args.scale_format});
  if (n == 0) return;
  visit_float(args.dy.dtype, BiasBackwardArgs::kName, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = Computed<T>;
    std::int64_t lines = 0;
    if (rows > 0) {
      const RowBlocks blocks(args.dy);
      lines = blocks.count;
      const bool fits = cuda::rows_fit(n, {&args.dy, &args.saved, &args.dx, &args.y});
      const Backward<T> backward{args.dy.as<T>(),
                                 args.saved.as<T>(),
                                 args.dx.as<T>(),
                                 args.y.as<T>(),
                                 args.dbias.defined() ? args.workspace.as<C>() : nullptr,
                                 args.scale.as<float>(),
                                 fp8_top_exponent(args.scale_format),
                                 rows,
                                 n,
                                 0,
                                 0};
      if (args.activation == Activation::none) {
        launch_backward<pointwise::Relu, false>(cuda, backward, blocks, fits);
      } else {
        visit_activation<T>(args.activation,
                            [&](auto f) { launch_backward<decltype(f), true>(cuda, backward, blocks, fits); });
      }
    }
    if (!args.dbias.defined()) return;
    cuda::add_lines(cuda, args.workspace.as<C>(), lines, n, n, args.dbias.as<T>(), static_cast<T*>(nullptr));
  });
  check_cuda(cudaGetLastError(), BiasBackwardArgs::kName, cuda.device);
}

}  // namespace castor
