// The 8-bit conversions on CUDA, with the CPU's bits. Delicate: the scale's own place first holds the bits of the
// largest magnitude, found by integer maxima, whose order does not matter; then one thread turns them into the scale.
#include <algorithm>

#include "core/device/cuda_runtime.h"
#include "core/ops/fp8.h"

namespace castor {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kMostBlocks = 1024;

unsigned blocks_for(std::int64_t count) {
  return static_cast<unsigned>(std::clamp<std::int64_t>((count + kThreads - 1) / kThreads, 1, kMostBlocks));
}

template <class T>
__global__ void largest_kernel(const T* x, std::int64_t count, std::uint32_t* largest) {
  std::uint32_t here = 0;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x; i < count; i += step) {
    const std::uint32_t bits = magnitude_bits(load(x[i]));
    here = bits > here ? bits : here;
  }
  for (int offset = 16; offset > 0; offset /= 2) {
    const std::uint32_t other = __shfl_xor_sync(0xffffffff, here, offset);
    here = other > here ? other : here;
  }
  if (threadIdx.x % 32 == 0 && here != 0) atomicMax(largest, here);
}

__global__ void scale_kernel(float* scale, int top_exponent) {
  *scale = fp8_scale(detail::bit_cast<std::uint32_t>(*scale), top_exponent);
}

template <class From, class To>
__global__ void round_kernel(const From* x, const float* scale, To* y, std::int64_t count) {
  const float by = *scale;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x; i < count; i += step)
    y[i] = fp8_round<To>(load(x[i]), by);
}

template <class From, class To>
__global__ void expand_kernel(const From* x, const float* scale, To* y, std::int64_t count) {
  const float inverse = 1.0f / *scale;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x; i < count; i += step)
    y[i] = store<To>(load(x[i]) * inverse);
}

template <class F>
void visit_fp8(DType dtype, F&& f) {
  if (dtype == DType::f8e4m3) return f(TypeTag<Float8E4M3>{});
  f(TypeTag<Float8E5M2>{});
}

}  // namespace

void run(const Cuda& cuda, const Fp8ScaleArgs& args) {
  check_cuda(cudaMemsetAsync(args.scale.data, 0, sizeof(float), stream_of(cuda)), Fp8ScaleArgs::kName, cuda.device);
  visit_training_float(args.x.dtype, Fp8ScaleArgs::kName, [&](auto tag) {
    using T = typename decltype(tag)::type;
    largest_kernel<T><<<blocks_for(args.x.numel()), kThreads, 0, stream_of(cuda)>>>(
        args.x.as<T>(), args.x.numel(), static_cast<std::uint32_t*>(args.scale.data));
  });
  scale_kernel<<<1, 1, 0, stream_of(cuda)>>>(args.scale.as<float>(), fp8_top_exponent(args.format));
  check_cuda(cudaGetLastError(), Fp8ScaleArgs::kName, cuda.device);
}

void run(const Cuda& cuda, const Fp8RoundArgs& args) {
  visit_training_float(args.x.dtype, Fp8RoundArgs::kName, [&](auto from) {
    using From = typename decltype(from)::type;
    visit_fp8(args.y.dtype, [&](auto to) {
      using To = typename decltype(to)::type;
      round_kernel<From, To><<<blocks_for(args.x.numel()), kThreads, 0, stream_of(cuda)>>>(
          args.x.as<From>(), args.scale.as<float>(), args.y.as<To>(), args.x.numel());
    });
  });
  check_cuda(cudaGetLastError(), Fp8RoundArgs::kName, cuda.device);
}

void run(const Cuda& cuda, const Fp8ExpandArgs& args) {
  visit_fp8(args.x.dtype, [&](auto from) {
    using From = typename decltype(from)::type;
    visit_training_float(args.y.dtype, Fp8ExpandArgs::kName, [&](auto to) {
      using To = typename decltype(to)::type;
      expand_kernel<From, To><<<blocks_for(args.x.numel()), kThreads, 0, stream_of(cuda)>>>(
          args.x.as<From>(), args.scale.as<float>(), args.y.as<To>(), args.x.numel());
    });
  });
  check_cuda(cudaGetLastError(), Fp8ExpandArgs::kName, cuda.device);
}

}  // namespace castor
