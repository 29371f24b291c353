// AdamW with states in 8 bits on CUDA: a block of threads a block of elements, which stays in registers between the
// update, the search for its largest magnitudes and that for the codes. Memory is walked once. Delicate: a maximum has
// no rounding, so the order in which threads find it does not matter.
#include "core/ops/adam8bit.h"
#include "core/ops/dynamic_code.h"
#include "core/ops/optim_cuda.cuh"

namespace castor {
namespace {

constexpr int kThreads = 256;
constexpr int kEach = static_cast<int>(kStatisticsBlock) / kThreads;  // elements a thread
constexpr int kWarps = kThreads / 32;

__constant__ constexpr DynamicCode kSigned = make_dynamic_code(true);
__constant__ constexpr DynamicCode kUnsigned = make_dynamic_code(false);

/// The largest of all threads' numbers, in every thread. `room` is shared and used by nobody else.
__device__ float largest_of_block(float x, float* room) {
  for (int width = 16; width > 0; width /= 2) {
    const float other = __shfl_xor_sync(0xffffffff, x, width);
    x = other > x ? other : x;
  }
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
  __syncthreads();
  for (int warp = 0; warp < kWarps; ++warp) x = room[warp] > x ? room[warp] : x;
  return x;
}

__device__ float magnitude(float x) { return x < 0.0f ? -x : x; }

template <class C>
__global__ void __launch_bounds__(kThreads)
    adam8bit_kernel(AdamScalars s, cuda::AnyGradient gradient, float* p, C* copy, std::uint8_t* mean_codes,
                    std::uint8_t* square_codes, float* mean_scales, float* square_scales, std::int64_t count) {
  __shared__ DynamicCode mean_code, square_code;
  __shared__ float mean_room[kWarps], square_room[kWarps];
  for (int i = threadIdx.x; i < DynamicCode::kSize; i += kThreads) {
    mean_code.value[i] = kSigned.value[i];
    square_code.value[i] = kUnsigned.value[i];
    if (i + 1 == DynamicCode::kSize) continue;
    mean_code.edge[i] = kSigned.edge[i];
    square_code.edge[i] = kUnsigned.edge[i];
  }
  const std::int64_t block = blockIdx.x, begin = block * kStatisticsBlock;
  const float mean_factor = mean_scales[block], square_factor = square_scales[block];
  __syncthreads();  // the tables are there, and every thread has the old scales
  float mean[kEach], square[kEach], most_mean = 0.0f, most_square = 0.0f;
  for (int k = 0; k < kEach; ++k) {
    const std::int64_t i = begin + k * kThreads + threadIdx.x;
    mean[k] = square[k] = 0.0f;
    if (i >= count) continue;
    const optim::AdamElement e = optim::adam_element(s, gradient(i), p[i], mean_code.value[mean_codes[i]] * mean_factor,
                                                     square_code.value[square_codes[i]] * square_factor, 0.0f, false);
    mean[k] = e.mean;
    square[k] = e.square;
    p[i] = e.parameter;
    if (copy != nullptr) copy[i] = cuda::write<C>(e.parameter);
    most_mean = magnitude(e.mean) > most_mean ? magnitude(e.mean) : most_mean;
    most_square = magnitude(e.square) > most_square ? magnitude(e.square) : most_square;
  }
  most_mean = largest_of_block(most_mean, mean_room);
  most_square = largest_of_block(most_square, square_room);
  const float mean_scale = most_mean > 0.0f ? most_mean : 1.0f, square_scale = most_square > 0.0f ? most_square : 1.0f;
  for (int k = 0; k < kEach; ++k) {
    const std::int64_t i = begin + k * kThreads + threadIdx.x;
    if (i >= count) continue;
    mean_codes[i] = nearest_code(mean_code.edge, mean[k] / mean_scale);
    square_codes[i] = nearest_code(square_code.edge, square[k] / square_scale);
  }
  if (threadIdx.x != 0) return;
  mean_scales[block] = most_mean;
  square_scales[block] = most_square;
}

}  // namespace

void run(const Cuda& cuda, const Adam8bitArgs& args) {
  const std::int64_t count = args.parameter.numel();
  if (count == 0) return;
  visit_training_float(args.copy.defined() ? args.copy.dtype : DType::f32, Adam8bitArgs::kName, [&](auto tag) {
    using C = typename decltype(tag)::type;
    adam8bit_kernel<C><<<static_cast<unsigned>(block_count(count)), kThreads, 0, stream_of(cuda)>>>(
        args.scalars, cuda::AnyGradient(args.gradient), args.parameter.as<float>(), args.copy.as<C>(),
        args.mean_codes.as<std::uint8_t>(), args.square_codes.as<std::uint8_t>(), args.mean_scales.as<float>(),
        args.square_scales.as<float>(), count);
  });
  check_cuda(cudaGetLastError(), Adam8bitArgs::kName, cuda.device);
}

}  // namespace castor
