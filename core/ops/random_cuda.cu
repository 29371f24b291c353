// Random kernels on CUDA: a thread a Philox block, that is four elements of the logical tensor, wherever a range
// begins. The maths is random_values.h, so the bits are the CPU's.
#include <cmath>

#include "core/ops/random.h"
#include "core/ops/random_values.h"
#include "core/ops/recorded_keys.h"
#include "core/ops/rows_cuda.cuh"

namespace castor {
namespace {

using cuda::visit_float;

constexpr int kThreads = 256;

struct Uniform {
  float low, range;
  __device__ void operator()(const Philox4& words, float (&made)[4]) const {
    for (int i = 0; i < 4; ++i) made[i] = random_values::uniform(words.word[i], low, range);
  }
};

struct Normal {
  float mean, deviation;
  __device__ void operator()(const Philox4& words, float (&made)[4]) const {
    for (int i = 0; i < 4; i += 2) {
      const random_values::NormalPair pair = random_values::normal_pair(words.word[i], words.word[i + 1]);
      made[i] = math::fma(pair.even, deviation, mean);
      made[i + 1] = math::fma(pair.odd, deviation, mean);
    }
  }
};

struct TruncatedNormal {
  float mean, deviation, from, range, least, most;
  __device__ void operator()(const Philox4& words, float (&made)[4]) const {
    for (int i = 0; i < 4; ++i) {
      made[i] = math::fma(random_values::truncated_normal(words.word[i], from, range, least, most), deviation, mean);
    }
  }
};

/// The elements [4 block - offset, ...) of a range that starts `offset` elements into the logical tensor.
struct Range {
  RandomKey key;
  const RandomKey* recorded;  ///< where the key of each run lies, for work that is recorded; else nullptr
  std::uint64_t offset;
  std::int64_t count;

  /// Calls body(words of this thread's block, its first element, which may be negative).
  template <class Body>
  __device__ void for_block(Body body) const {
    const std::uint64_t block = offset / 4 + static_cast<std::uint64_t>(blockIdx.x) * kThreads + threadIdx.x;
    const std::int64_t first = static_cast<std::int64_t>(block * 4 - offset);
    if (first < count) body(philox(recorded != nullptr ? *recorded : key, block), first);
  }
  unsigned blocks() const {
    const std::uint64_t words = offset % 4 + static_cast<std::uint64_t>(count);
    return static_cast<unsigned>((words + 4 * kThreads - 1) / (4 * kThreads));
  }
};

template <class T, class Make>
__global__ void __launch_bounds__(kThreads) fill_blocks(T* y, const Range range, const Make make) {
  range.for_block([&](const Philox4& words, std::int64_t first) {
    float made[4];
    make(words, made);
    for (int i = 0; i < 4; ++i) {
      if (first + i >= 0 && first + i < range.count) y[first + i] = cuda::write<T>(made[i]);
    }
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    drop_blocks(const T* x, T* y, const Range range, std::uint32_t threshold, decltype(load(T{})) factor) {
  using C = decltype(load(T{}));
  range.for_block([&](const Philox4& words, std::int64_t first) {
    for (int i = 0; i < 4; ++i) {
      const std::int64_t at = first + i;
      if (at < 0 || at >= range.count) continue;
      y[at] = cuda::write<T>(random_values::is_kept(words.word[i], threshold) ? cuda::read(x[at]) * factor : C(0));
    }
  });
}

template <class Make>
void fill_with(const Cuda& cuda, const RandomFillArgs& args, const Make& make) {
  const Range range{args.key, recorded_place(args.key), args.offset, args.y.numel()};
  if (range.count == 0) return;
  visit_float(args.y.dtype, RandomFillArgs::kName, [&](auto tag) {
    using T = typename decltype(tag)::type;
    fill_blocks<T><<<range.blocks(), kThreads, 0, stream_of(cuda)>>>(args.y.as<T>(), range, make);
  });
  check_cuda(cudaGetLastError(), RandomFillArgs::kName, cuda.device);
}

}  // namespace

void run(const Cuda& cuda, const RandomFillArgs& args) {
  const float a = static_cast<float>(args.a), b = static_cast<float>(args.b);
  switch (args.distribution) {
    case Distribution::uniform:
      return fill_with(cuda, args, Uniform{a, static_cast<float>(args.b - args.a)});
    case Distribution::normal:
      return fill_with(cuda, args, Normal{a, b});
    case Distribution::truncated_normal: {
      const double low = (args.low - args.a) / args.b, high = (args.high - args.a) / args.b;
      const double erf_low = std::erf(low / std::sqrt(2.0)), erf_high = std::erf(high / std::sqrt(2.0));
      return fill_with(cuda, args,
                       TruncatedNormal{a, b, static_cast<float>(erf_low), static_cast<float>(erf_high - erf_low),
                                       static_cast<float>(low), static_cast<float>(high)});
    }
  }
  throw InternalError("random_fill: a distribution outside the enumeration");
}

void run(const Cuda& cuda, const DropoutArgs& args) {
  const auto threshold = static_cast<std::uint32_t>(std::llround(args.probability * 16777216.0));
  const Range range{args.key, recorded_place(args.key), args.offset, args.x.numel()};
  if (range.count == 0) return;
  visit_float(args.x.dtype, DropoutArgs::kName, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = decltype(load(T{}));
    const C factor = threshold == 16777216u ? C(0) : static_cast<C>(1.0 / (1.0 - args.probability));
    drop_blocks<T>
        <<<range.blocks(), kThreads, 0, stream_of(cuda)>>>(args.x.as<T>(), args.y.as<T>(), range, threshold, factor);
  });
  check_cuda(cudaGetLastError(), DropoutArgs::kName, cuda.device);
}

}  // namespace castor
