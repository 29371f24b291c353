// Gated linear units on CUDA. Memory binds both directions: words of 16 bytes, each operand once; a thread has one word
// of a row's gate and the word of its up that belongs to it.
//
// Delicate: words are counted in 32 bits; more rows than that holds go into another launch.
#include <algorithm>

#include "core/ops/activation_cuda.cuh"
#include "core/ops/fast_divisor.h"
#include "core/ops/fp8_cuda.cuh"
#include "core/ops/gated.h"

namespace castor {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kMostWords = (std::int64_t{1} << 31) - kThreads;
constexpr std::int64_t kScalingBlocks = 8 * 132;  // what a large GPU holds at a time: each block counts for a scale

template <class T>
struct Gated {
  const T *packed, *dy;
  T *y, *dpacked;
  float* scale;  ///< of y, or of dpacked, in 8 bits; nullptr where it is not wanted
  int top_exponent;
  std::uint32_t words;       ///< of y, in this launch
  FastDivisor words_of_row;  ///< of y
};

/// y, if there is one, and with `kIsBackward` the gradient of `packed`.
template <class F, bool kIsBackward, bool kHasScale, int V, class T>
__global__ void __launch_bounds__(kThreads) gated_words(const Gated<T> args) {
  using C = cuda::Computed<T>;
  const std::uint32_t in_row = args.words_of_row.divisor;
  std::uint32_t largest = 0;
  const auto store = [&](T* to, const C(&values)[V], bool is_scaled) {
    const auto word = cuda::rounded<T, V>(values);
    cuda::store_pack(to, word);
    if constexpr (kHasScale) {
      const auto numbers = cuda::numbers(word);
      for (int e = 0; is_scaled && e < V; ++e) largest = max(largest, magnitude_bits(numbers.value[e]));
    }
  };
  for (std::uint32_t word = blockIdx.x * kThreads + threadIdx.x; word < args.words; word += gridDim.x * kThreads) {
    const std::uint32_t row = args.words_of_row.quotient(word);
    const std::int64_t own = static_cast<std::int64_t>(word) * V;
    const std::int64_t gate_at = own + static_cast<std::int64_t>(row) * in_row * V, up_at = gate_at + in_row * V;
    const auto gate_word = cuda::pack_at<V>(args.packed + gate_at), up_word = cuda::pack_at<V>(args.packed + up_at);
    cuda::Pack<T, V> dy_word{};
    if constexpr (kIsBackward) dy_word = cuda::pack_at<V>(args.dy + own);
    const auto gate = cuda::numbers(gate_word), up = cuda::numbers(up_word), dy = cuda::numbers(dy_word);
    C y[V], dgate[V], dup[V];
    for (int e = 0; e < V; ++e) {
      const C x = gate.value[e], value = F::value(x, C(0), C(0));
      y[e] = value * up.value[e];
      if constexpr (kIsBackward) {
        dgate[e] = dy.value[e] * up.value[e] * F::slope(x, x, C(0), C(0));
        dup[e] = dy.value[e] * value;
      }
    }
    if (!kIsBackward || args.y != nullptr) store(args.y + own, y, !kIsBackward);
    if constexpr (kIsBackward) {
      store(args.dpacked + gate_at, dgate, true);
      store(args.dpacked + up_at, dup, true);
    }
  }
  if constexpr (kHasScale) cuda::finish_fp8_scale(largest, args.scale, args.top_exponent);
}

template <bool kIsBackward, bool kHasScale, int V, class T>
void launch_rows(const Cuda& cuda, const Gated<T>& all, Activation activation, std::int64_t rows, std::int64_t n) {
  const std::int64_t in_row = n / V, at_once = std::max<std::int64_t>(1, kMostWords / in_row);
  for (std::int64_t first = 0; first < rows; first += at_once) {
    const std::int64_t here = std::min(at_once, rows - first);
    Gated<T> args = all;
    args.packed += 2 * first * n;
    if (kIsBackward) args.dy += first * n;
    if (kIsBackward) args.dpacked += 2 * first * n;
    if (args.y != nullptr) args.y += first * n;
    args.words = static_cast<std::uint32_t>(here * in_row);
    args.words_of_row = FastDivisor(static_cast<std::uint32_t>(in_row));
    std::int64_t blocks = (here * in_row + kThreads - 1) / kThreads;
    if (kHasScale) blocks = std::min(blocks, kScalingBlocks);
    cuda::visit_activation<T>(activation, [&](auto f) {
      gated_words<decltype(f), kIsBackward, kHasScale, V>
          <<<static_cast<unsigned>(blocks), kThreads, 0, stream_of(cuda)>>>(args);
    });
  }
}

template <bool kIsBackward>
void run_rows(const Cuda& cuda, const char* op, const View& packed, const View& dy, const View& y, const View& dpacked,
              Activation activation, const View& scale) {
  const std::int64_t rows = packed.size[0], n = packed.size[1] / 2;
  const DType format = kIsBackward ? DType::f8e5m2 : DType::f8e4m3;
  cuda::visit_float(packed.dtype, op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Gated<T> args{packed.as<T>(),           dy.as<T>(), y.as<T>(), dpacked.as<T>(), scale.as<float>(),
                        fp8_top_exponent(format), 0,          {}};
    const bool fits = cuda::rows_fit(n, {&packed, &dy, &y, &dpacked});
    if constexpr (!std::is_same_v<T, double>) {
      constexpr int V = cuda::kPackWidth<T>;
      if (scale.defined() && fits && rows * (n / V) <= kMostWords) {  // in one launch
        cuda::start_fp8_scale(cuda, op, scale.data);
        return launch_rows<kIsBackward, true, V>(cuda, args, activation, rows, n);
      }
    }
    fits ? launch_rows<kIsBackward, false, cuda::kPackWidth<T>>(cuda, args, activation, rows, n)
         : launch_rows<kIsBackward, false, 1>(cuda, args, activation, rows, n);
    if (scale.defined()) run(cuda, Fp8ScaleArgs{kIsBackward ? dpacked : y, scale, format});
  });
  check_cuda(cudaGetLastError(), op, cuda.device);
}

}  // namespace

void run(const Cuda& cuda, const GatedArgs& args) {
  run_rows<false>(cuda, GatedArgs::kName, args.packed, {}, args.y, {}, args.activation, args.scale);
}

void run(const Cuda& cuda, const GatedBackwardArgs& args) {
  run_rows<true>(cuda, GatedBackwardArgs::kName, args.packed, args.dy, args.y, args.dpacked, args.activation,
                 args.scale);
}

}  // namespace castor
