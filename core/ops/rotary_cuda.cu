// Rotary embedding on CUDA. Memory binds it: a thread has a word of 16 bytes of a head's first half and the one of its
// second half that turns with it, in a few heads of one token, so that an angle is read once for all of them. What does
// not turn is copied by threads of its own.
//
// Delicate: y may be x; a thread reads its words before it writes them, and no others. Words are counted in 32 bits;
// more tokens than that holds go into another launch.
#include <algorithm>

#include "core/ops/fast_divisor.h"
#include "core/ops/rotary.h"
#include "core/ops/row_packs_cuda.cuh"

namespace castor {
namespace {

constexpr int kThreads = 256;
constexpr int kHeads = 4;                                   // of a thread
constexpr std::int64_t kMostWords = std::int64_t{1} << 30;  // of a launch; positions are below 2^30, too

template <class T, class C>
struct Turn {
  const T* x;
  T* y;
  const C *cos, *sin;
  C sign;
  std::int64_t x_stride[3], y_stride[3];  ///< of batch, token, head
  std::int64_t offset;                    ///< the first token's place in the table
  int half, heads;
  std::uint32_t first;                         ///< token of this launch, counted from the start of its batch
  std::uint32_t count;                         ///< threads that have something to do
  FastDivisor words, groups_of_heads, length;  ///< words: of a head, but those of second halves; length: tokens
};

/// N numbers of a table as words of 16 bytes.
template <int N, class C>
__device__ void read_angles(C (&to)[N], const C* from) {
  constexpr int kWide = N < cuda::kPackWidth<C> ? N : cuda::kPackWidth<C>;
#pragma unroll
  for (int i = 0; i < N; i += kWide) {
    const auto word = cuda::pack_at<kWide>(from + i);
    for (int e = 0; e < kWide; ++e) to[i + e] = word.value[e];
  }
}

template <int V, class T, class C>
__global__ void __launch_bounds__(kThreads) turn(const __grid_constant__ Turn<T, C> p) {
  const std::uint32_t thread = blockIdx.x * kThreads + threadIdx.x;
  if (thread >= p.count) return;
  const std::uint32_t above = p.words.quotient(thread), word = thread - above * p.words.divisor;
  const std::uint32_t token = p.groups_of_heads.quotient(above), group = above - token * p.groups_of_heads.divisor;
  const std::uint32_t batch = p.length.quotient(p.first + token), position = p.first + token - batch * p.length.divisor;
  const int first_head = static_cast<int>(group) * kHeads, heads = min(kHeads, p.heads - first_head);
  const int i = static_cast<int>(word) * V;
  const bool turns = i < p.half;
  const int low = turns ? i : i + p.half;
  const T* const x = p.x + batch * p.x_stride[0] + position * p.x_stride[1] + first_head * p.x_stride[2] + low;
  T* const y = p.y + batch * p.y_stride[0] + position * p.y_stride[1] + first_head * p.y_stride[2] + low;
  cuda::Pack<T, V> a[kHeads], b[kHeads];
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    if (h >= heads) break;
    a[h] = cuda::pack_at<V>(x + h * p.x_stride[2]);
    if (turns) b[h] = cuda::pack_at<V>(x + h * p.x_stride[2] + p.half);
  }
  if (!turns) {
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      if (h < heads) cuda::store_pack(y + h * p.y_stride[2], a[h]);
    }
    return;
  }
  C c[V], s[V];
  const std::int64_t angle = (p.offset + position) * p.half + i;
  read_angles(c, p.cos + angle);
  read_angles(s, p.sin + angle);
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    if (h >= heads) break;
    const auto u = cuda::numbers(a[h]), v = cuda::numbers(b[h]);
    C low_half[V], high_half[V];
    for (int e = 0; e < V; ++e) {
      const C sine = p.sign * s[e];
      low_half[e] = math::fma(u.value[e], c[e], -(v.value[e] * sine));
      high_half[e] = math::fma(v.value[e], c[e], u.value[e] * sine);
    }
    cuda::store_pack(y + h * p.y_stride[2], cuda::rounded<T, V>(low_half));
    cuda::store_pack(y + h * p.y_stride[2] + p.half, cuda::rounded<T, V>(high_half));
  }
}

template <int V, class T, class C>
void launch(const Cuda& cuda, const RotaryArgs& args) {
  const std::int64_t half = args.cos.size[1], heads = args.x.size[2], length = args.x.size[1];
  const std::int64_t words = (args.x.size[3] - half) / V, groups = (heads + kHeads - 1) / kHeads;
  Turn<T, C> all{};
  all.x = args.x.as<T>();
  all.y = args.y.as<T>();
  all.cos = args.cos.as<C>();
  all.sin = args.sin.as<C>();
  all.sign = args.inverse ? C(-1) : C(1);
  for (int i = 0; i < 3; ++i) {
    all.x_stride[i] = args.x.stride[i];
    all.y_stride[i] = args.y.stride[i];
  }
  all.offset = args.offset;
  all.half = static_cast<int>(half);
  all.heads = static_cast<int>(heads);
  all.words = FastDivisor(static_cast<std::uint32_t>(words));
  all.groups_of_heads = FastDivisor(static_cast<std::uint32_t>(groups));
  all.length = FastDivisor(static_cast<std::uint32_t>(length));
  const std::int64_t tokens = args.x.size[0] * length,
                     at_once = std::max<std::int64_t>(1, kMostWords / (words * groups));
  for (std::int64_t first = 0; first < tokens; first += at_once) {
    Turn<T, C> part = all;
    part.x += first / length * part.x_stride[0];
    part.y += first / length * part.y_stride[0];
    part.first = static_cast<std::uint32_t>(first % length);
    part.count = static_cast<std::uint32_t>(std::min(at_once, tokens - first) * words * groups);
    turn<V><<<(part.count + kThreads - 1) / kThreads, kThreads, 0, stream_of(cuda)>>>(part);
  }
}

/// True where heads are words of 16 bytes, in both halves and in what does not turn.
bool heads_fit(const RotaryArgs& args, std::int64_t width) {
  if (args.cos.size[1] % width != 0) return false;
  for (int i = 0; i < 3; ++i) {
    if (args.x.stride[i] % width != 0 || args.y.stride[i] % width != 0) return false;
  }
  return cuda::rows_fit(args.x.size[3], {&args.x, &args.y}) && cuda::rows_fit(args.cos.size[1], {&args.cos, &args.sin});
}

template <class T, class C>
void turn_all(const Cuda& cuda, const RotaryArgs& args) {
  if (args.x.numel() == 0) return;
  constexpr int kWide = cuda::kPackWidth<T>;
  heads_fit(args, kWide) ? launch<kWide, T, C>(cuda, args) : launch<1, T, C>(cuda, args);
  check_cuda(cudaGetLastError(), RotaryArgs::kName, cuda.device);
}

}  // namespace

void run(const Cuda& cuda, const RotaryArgs& args) {
  if (args.x.dtype == DType::f64) return turn_all<double, double>(cuda, args);
  visit_training_float(args.x.dtype, RotaryArgs::kName,
                       [&](auto tag) { turn_all<typename decltype(tag)::type, float>(cuda, args); });
}

}  // namespace castor
