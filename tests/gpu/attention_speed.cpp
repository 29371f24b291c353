// How fast attention runs: medians of forward and backward on packed projections, with the rate of the products
// that the result needs (4 and 10 operations for each visible pair and element of a head; recomputation counts for
// nothing). tests/gpu/attention_peer.py measures PyTorch's on the same shapes.
// usage: gpu_attention_speed     needs a GPU; prints one line a shape
#include <algorithm>
#include <cstdio>
#include <functional>

#include <cuda_runtime_api.h>

#include "core/device/cuda_runtime.h"
#include "core/ops/attention.h"
#include "core/ops/random.h"

using namespace castor;

namespace {

constexpr Device kGpu{DeviceType::cuda, 0};
constexpr int kRuns = 11, kWarmUps = 3, kCalls = 4;

struct Shapes {
  std::int64_t batch, length, heads, dim;
  bool is_causal;
  DType dtype = DType::bf16;
};

constexpr Shapes kShapes[] = {
    {32, 1024, 12, 64, true}, {8, 4096, 12, 64, true},  {16, 1024, 25, 64, true},  {16, 1024, 32, 128, true},
    {4, 4096, 32, 128, true}, {8, 4096, 12, 64, false}, {4, 4096, 32, 128, false}, {8, 1024, 12, 64, true, DType::f32},
};

double median_ms(const std::function<void()>& work) {
  const auto stream = static_cast<cudaStream_t>(backend(kGpu).stream());
  cudaEvent_t begin = nullptr, end = nullptr;
  check_cuda(cudaEventCreate(&begin), "create an event", kGpu);
  check_cuda(cudaEventCreate(&end), "create an event", kGpu);
  std::vector<float> times;
  for (int run = 0; run < kRuns + kWarmUps; ++run) {
    check_cuda(cudaEventRecord(begin, stream), "record an event", kGpu);
    for (int call = 0; call < kCalls; ++call) work();
    check_cuda(cudaEventRecord(end, stream), "record an event", kGpu);
    check_cuda(cudaEventSynchronize(end), "wait for an event", kGpu);
    float ms = 0;
    check_cuda(cudaEventElapsedTime(&ms, begin, end), "read an event", kGpu);
    if (run >= kWarmUps) times.push_back(ms / kCalls);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::sort(times.begin(), times.end());
  return static_cast<double>(times[times.size() / 2]);
}

Tensor normal(const Shape& shape, DType dtype, std::uint64_t key) {
  const Tensor x = Tensor::empty(shape, dtype, kGpu);
  fill_normal(x, {key, 1});
  return x;
}

}  // namespace

int main() {
  for (const Shapes& s : kShapes) {
    const Shape packed_shape{s.batch, s.length, 3, s.heads, s.dim};
    const Tensor packed = normal(packed_shape, s.dtype, 1), gradient = Tensor::empty(packed_shape, s.dtype, kGpu);
    const Tensor dout = normal({s.batch, s.length, s.heads, s.dim}, s.dtype, 2);
    const Tensor q = packed.select(2, 0), k = packed.select(2, 1), v = packed.select(2, 2);
    const AttentionGradients into{gradient.select(2, 0), gradient.select(2, 1), gradient.select(2, 2)};
    AttentionOptions options;
    options.causal = s.is_causal;
    const AttentionResult result = attention(q, k, v, options);
    const double forward = median_ms([&] { attention(q, k, v, options); });
    const double backward = median_ms([&] { attention_backward(q, k, v, result, dout, options, into); });
    const double pairs = static_cast<double>(s.batch * s.heads * s.length) *
                         static_cast<double>(s.is_causal ? s.length + 1 : 2 * s.length) / 2;
    const double forward_work = 4 * pairs * static_cast<double>(s.dim), backward_work = 2.5 * forward_work;
    const std::string what =
        cat(s.dtype, s.is_causal ? " causal" : " full", " B ", s.batch, " T ", s.length, " H ", s.heads, " D ", s.dim);
    std::printf("castor   %-34s forward %7.4f ms %4.0f TFLOP/s  backward %7.4f ms %4.0f TFLOP/s  both %7.4f ms\n",
                what.c_str(), forward, forward_work / forward / 1e9, backward, backward_work / backward / 1e9,
                forward + backward);
  }
  return 0;
}
