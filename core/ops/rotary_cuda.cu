// Rotary embedding on CUDA: a thread a plane, or an element that is only copied. Delicate: y may be x; a thread reads
// its two elements before it writes them, and no other.
#include "core/ops/rotary.h"
#include "core/ops/rows_cuda.cuh"

namespace castor {
namespace {

constexpr int kThreads = 256;

struct Sizes {
  std::int64_t batch, length, heads, half, rest;  // rest = elements of a head that do not turn
  std::int64_t x_stride[3], y_stride[3];
  std::int64_t offset;
};

template <class T, class C>
__global__ void __launch_bounds__(kThreads)
    turn(const T* x, T* y, const C* cos, const C* sin, const Sizes sizes, C sign, std::int64_t count) {
  const std::int64_t width = sizes.half + sizes.rest, step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; at < count; at += step) {
    const std::int64_t i = at % width, row = at / width, head = row % sizes.heads, token = row / sizes.heads;
    const std::int64_t position = token % sizes.length, batch = token / sizes.length;
    const T* const from = x + batch * sizes.x_stride[0] + position * sizes.x_stride[1] + head * sizes.x_stride[2];
    T* const to = y + batch * sizes.y_stride[0] + position * sizes.y_stride[1] + head * sizes.y_stride[2];
    if (i >= sizes.half) {
      to[i + sizes.half] = from[i + sizes.half];
      continue;
    }
    const std::int64_t angle = (sizes.offset + position) * sizes.half + i;
    const C a = cuda::read(from[i]), b = cuda::read(from[i + sizes.half]);
    const C c = cos[angle], s = sign * sin[angle];
    to[i] = cuda::write<T>(math::fma(a, c, -(b * s)));
    to[i + sizes.half] = cuda::write<T>(math::fma(b, c, a * s));
  }
}

template <class T, class C>
void turn_all(const Cuda& cuda, const RotaryArgs& args) {
  const std::int64_t half = args.cos.size[1];
  Sizes sizes{args.x.size[0], args.x.size[1], args.x.size[2], half, args.x.size[3] - 2 * half, {}, {}, args.offset};
  for (int i = 0; i < 3; ++i) {
    sizes.x_stride[i] = args.x.stride[i];
    sizes.y_stride[i] = args.y.stride[i];
  }
  const std::int64_t count = sizes.batch * sizes.length * sizes.heads * (half + sizes.rest);
  if (count == 0) return;
  const std::int64_t blocks = std::min<std::int64_t>((count + kThreads - 1) / kThreads, 1 << 20);
  turn<T, C><<<static_cast<unsigned>(blocks), kThreads, 0, stream_of(cuda)>>>(
      args.x.as<T>(), args.y.as<T>(), args.cos.as<C>(), args.sin.as<C>(), sizes, args.inverse ? C(-1) : C(1), count);
  check_cuda(cudaGetLastError(), RotaryArgs::kName, cuda.device);
}

}  // namespace

void run(const Cuda& cuda, const RotaryArgs& args) {
  if (args.x.dtype == DType::f64) return turn_all<double, double>(cuda, args);
  visit_training_float(args.x.dtype, RotaryArgs::kName,
                       [&](auto tag) { turn_all<typename decltype(tag)::type, float>(cuda, args); });
}

}  // namespace castor
