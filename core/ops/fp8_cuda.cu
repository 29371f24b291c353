// The 8-bit conversions on CUDA, with the CPU's bits: one pass that finds the largest magnitude, and one that rounds
// and, where a product asks for it, transposes through shared memory. Memory binds both.
//
// Delicate: the processor's own conversion saturates, which is what the CPU does in e4m3; what it would do otherwise
// (values that are not finite, and e5m2's overflow beside one of those) goes the slow way. The first pass walks the
// tensor from its end, where its writer stopped, and so leaves its start in the cache for the second.
#include <algorithm>
#include <bit>

#include <cuda_fp8.h>

#include "core/ops/fp8_cuda.cuh"
#include "core/ops/row_packs_cuda.cuh"

namespace castor {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kPlaces = 132;  // multiprocessors of an H100

/// At most `most` blocks for each multiprocessor.
unsigned blocks_for(std::int64_t count, std::int64_t a_thread, std::int64_t most) {
  const std::int64_t of_block = kThreads * a_thread;
  return static_cast<unsigned>(std::clamp<std::int64_t>((count + of_block - 1) / of_block, 1, most * kPlaces));
}

/// The largest magnitude of packs of V and of what is left behind the last one, from the end on.
template <int V, class T>
__global__ void __launch_bounds__(kThreads) largest_kernel(const T* x, std::int64_t count, float* scale, int exponent) {
  constexpr int kAtOnce = V == 1 ? 1 : 4;
  std::uint32_t here = 0;
  const auto meet = [&](T element) {
    const std::uint32_t bits = magnitude_bits(cuda::read(element));
    here = bits > here ? bits : here;
  };
  const std::int64_t packs = count / V, step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  const std::int64_t first = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x;
  for (std::int64_t pack = first; pack < packs; pack += step * kAtOnce) {
    cuda::Pack<T, V> held[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      if (pack + k * step < packs) held[k] = cuda::pack_at<V>(x + (packs - 1 - pack - k * step) * V);
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      if (pack + k * step < packs) {
        for (int e = 0; e < V; ++e) meet(held[k].value[e]);
      }
    }
  }
  if (first < count - packs * V) meet(x[packs * V + first]);
  cuda::finish_fp8_scale(here, scale, exponent);
}

/// Four elements of a tile's row, the first in the lowest byte.
template <class To>
__device__ std::uint32_t round_four(const float (&x)[4], float scale) {
  constexpr bool kIsE4M3 = std::is_same_v<To, Float8E4M3>;
  constexpr std::uint32_t kSlow = kIsE4M3 ? 0x7F800000u : 0x47700000u;  // infinity, e5m2's first that overflows
  float scaled[4];
  std::uint32_t largest = 0;
  for (int e = 0; e < 4; ++e) {
    scaled[e] = x[e] * scale;
    largest = max(largest, magnitude_bits(scaled[e]));
  }
  std::uint32_t word = 0;
  if (largest < kSlow) [[likely]] {
    constexpr auto kFormat = kIsE4M3 ? __NV_E4M3 : __NV_E5M2;
    const std::uint32_t low = __nv_cvt_float2_to_fp8x2({scaled[0], scaled[1]}, __NV_SATFINITE, kFormat),
                        high = __nv_cvt_float2_to_fp8x2({scaled[2], scaled[3]}, __NV_SATFINITE, kFormat);
    return low | high << 16;
  }
  for (int e = 0; e < 4; ++e) word |= static_cast<std::uint32_t>(fp8_round<To>(x[e], scale).bits) << (8 * e);
  return word;
}

/// Eight neighbours as they lie in memory, and as numbers.
template <class T>
struct Eight {
  static constexpr int kWidth = cuda::kPackWidth<T>;
  cuda::Pack<T, kWidth> packs[8 / kWidth] = {};

  __device__ void read(const T* from) {
#pragma unroll
    for (int part = 0; part < 8 / kWidth; ++part) packs[part] = cuda::pack_at<kWidth>(from + part * kWidth);
  }
  __device__ void values(float (&to)[2][4]) const {
    for (int part = 0; part < 8 / kWidth; ++part) {
      const auto own = cuda::numbers(packs[part]);
      for (int e = 0; e < kWidth; ++e) to[(part * kWidth + e) / 4][e % 4] = own.value[e];
    }
  }
};

constexpr int kTile = 64;  // rows and columns of a tile
constexpr int kQuads = kTile / 4, kAcross = kTile / 8, kTileThreads = kQuads * kAcross;

/// A tile of 64 x 64. A thread reads four rows of eight columns at once; the columns' words of four rows meet in shared
/// memory at places whose banks differ within a warp, both ways. n is a multiple of 8, and so is `rows` where there is
/// a transpose. Small tiles, since a block's reads and writes take turns and those of other blocks fill the gaps.
template <class From, class To>
__global__ void __launch_bounds__(kTileThreads, 8)
    round_tile(const From* x, const float* scale, To* y, To* transposed, std::int64_t rows, std::int64_t n,
               std::uint32_t tiles_across, bool from_end) {
  __shared__ alignas(8) std::uint32_t words[kTile * kQuads];
  const std::uint32_t tile = from_end ? gridDim.x - 1 - blockIdx.x : blockIdx.x, tile_row = tile / tiles_across;
  const std::int64_t row0 = static_cast<std::int64_t>(tile_row) * kTile,
                     column0 = static_cast<std::int64_t>(tile - tile_row * tiles_across) * kTile;
  const int across = static_cast<int>(threadIdx.x) % kAcross, quad = static_cast<int>(threadIdx.x) / kAcross;
  const std::int64_t start = (row0 + quad * 4) * n + column0 + across * 8;
  const int rows_left = column0 + across * 8 < n ? static_cast<int>(min(rows - row0 - quad * 4, std::int64_t{4})) : 0;
  Eight<From> held[4];
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    if (r < rows_left) held[r].read(x + start + r * n);
  }
  const float by = scale[1];
  std::uint32_t rounded[4][2];
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    float values[2][4];
    held[r].values(values);
    for (int part = 0; part < 2; ++part) rounded[r][part] = round_four<To>(values[part], by);
    if (y != nullptr && r < rows_left)
      *reinterpret_cast<uint2*>(y + start + r * n) = make_uint2(rounded[r][0], rounded[r][1]);
  }
  if (transposed == nullptr) return;
#pragma unroll
  for (int part = 0; part < 2; ++part) {
    // Four rows of four bytes become four columns of four bytes.
    const std::uint32_t a = rounded[0][part], b = rounded[1][part], c = rounded[2][part], d = rounded[3][part];
    const std::uint32_t ab_low = __byte_perm(a, b, 0x5140), ab_high = __byte_perm(a, b, 0x7362);
    const std::uint32_t cd_low = __byte_perm(c, d, 0x5140), cd_high = __byte_perm(c, d, 0x7362);
    const std::uint32_t columns[4] = {__byte_perm(ab_low, cd_low, 0x5410), __byte_perm(ab_low, cd_low, 0x7632),
                                      __byte_perm(ab_high, cd_high, 0x5410), __byte_perm(ab_high, cd_high, 0x7632)};
    for (int e = 0; e < 4; ++e) words[(across * 8 + part * 4 + e) * kQuads + (quad ^ (2 * across))] = columns[e];
  }
  __syncthreads();
  constexpr int kPairs = kQuads / 2;
  const int pair = static_cast<int>(threadIdx.x) % kPairs;  // of words: eight rows
  const std::int64_t row = row0 + pair * 8;
#pragma unroll
  for (int j = 0; j < kTile; j += kTileThreads / kPairs) {
    const int at = j + static_cast<int>(threadIdx.x) / kPairs;
    if (column0 + at >= n || row >= rows) continue;
    const auto both = reinterpret_cast<const uint2*>(words)[(at * kQuads + ((2 * pair) ^ (2 * (at / 8)))) / 2];
    *reinterpret_cast<uint2*>(transposed + (column0 + at) * rows + row) = both;
  }
}

/// Element by element, for tensors whose sizes no tile fits.
template <class From, class To>
__global__ void round_kernel(const From* x, const float* scale, To* y, To* transposed, std::int64_t rows,
                             std::int64_t n) {
  const float by = scale[1];
  const std::int64_t count = rows * n, step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x; i < count; i += step) {
    const To value = fp8_round<To>(load(x[i]), by);
    if (y != nullptr) y[i] = value;
    if (transposed != nullptr) transposed[i % n * rows + i / n] = value;
  }
}

template <class From, class To>
__global__ void expand_kernel(const From* x, const float* scale, To* y, std::int64_t count) {
  const float inverse = scale[0];
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x; i < count; i += step)
    y[i] = store<To>(load(x[i]) * inverse);
}

template <class F>
void visit_fp8(DType dtype, F&& f) {
  if (dtype == DType::f8e4m3) return f(TypeTag<Float8E4M3>{});
  f(TypeTag<Float8E5M2>{});
}

bool is_aligned(const View& view, std::uintptr_t bytes) {
  return !view.defined() || reinterpret_cast<std::uintptr_t>(view.data) % bytes == 0;
}

}  // namespace

void run(const Cuda& cuda, const Fp8ScaleArgs& args) {
  cuda::start_fp8_scale(cuda, Fp8ScaleArgs::kName, args.scale.data);
  visit_training_float(args.x.dtype, Fp8ScaleArgs::kName, [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr int kWidth = cuda::kPackWidth<T>;
    const std::int64_t count = args.x.numel();
    const auto launch = [&]<int kV>(std::integral_constant<int, kV>) {
      largest_kernel<kV><<<blocks_for(count, kV == 1 ? 1 : 4 * kV, 4), kThreads, 0, stream_of(cuda)>>>(
          args.x.as<T>(), count, args.scale.as<float>(), fp8_top_exponent(args.format));
    };
    is_aligned(args.x, 16) ? launch(std::integral_constant<int, kWidth>{}) : launch(std::integral_constant<int, 1>{});
  });
  check_cuda(cudaGetLastError(), Fp8ScaleArgs::kName, cuda.device);
}

void run(const Cuda& cuda, const Fp8RoundArgs& args) {
  const std::int64_t rows = args.x.size[0], n = args.x.size[1];
  if (rows == 0 || n == 0) return;
  const bool fits = n % 8 == 0 && (!args.transposed.defined() || rows % 8 == 0) && is_aligned(args.x, 16) &&
                    is_aligned(args.y, 8) && is_aligned(args.transposed, 8);
  visit_training_float(args.x.dtype, Fp8RoundArgs::kName, [&](auto from) {
    using From = typename decltype(from)::type;
    visit_fp8(args.format(), [&](auto to) {
      using To = typename decltype(to)::type;
      if (fits) {
        const std::int64_t across = (n + kTile - 1) / kTile, tiles = across * ((rows + kTile - 1) / kTile);
        round_tile<From, To><<<static_cast<unsigned>(tiles), kTileThreads, 0, stream_of(cuda)>>>(
            args.x.as<From>(), args.scale.as<float>(), args.y.as<To>(), args.transposed.as<To>(), rows, n,
            static_cast<std::uint32_t>(across), args.from_end);
      } else {
        round_kernel<From, To><<<blocks_for(rows * n, 1, 8), kThreads, 0, stream_of(cuda)>>>(
            args.x.as<From>(), args.scale.as<float>(), args.y.as<To>(), args.transposed.as<To>(), rows, n);
      }
    });
  });
  check_cuda(cudaGetLastError(), Fp8RoundArgs::kName, cuda.device);
}

void run(const Cuda& cuda, const Fp8ExpandArgs& args) {
  visit_fp8(args.x.dtype, [&](auto from) {
    using From = typename decltype(from)::type;
    visit_training_float(args.y.dtype, Fp8ExpandArgs::kName, [&](auto to) {
      using To = typename decltype(to)::type;
      expand_kernel<From, To><<<blocks_for(args.x.numel(), 1, 8), kThreads, 0, stream_of(cuda)>>>(
          args.x.as<From>(), args.scale.as<float>(), args.y.as<To>(), args.x.numel());
    });
  });
  check_cuda(cudaGetLastError(), Fp8ExpandArgs::kName, cuda.device);
}

}  // namespace castor
