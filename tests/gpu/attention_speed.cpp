// How fast attention runs: medians of forward and backward on packed projections, with the rate of the products
// that the result needs (4 and 10 operations for each visible pair and element of a head; recomputation counts for
// nothing). tests/gpu/attention_peer.py measures PyTorch's on the same shapes.
//
// Backward twice more: with gradients of scores kept for dq, and made once more for it; what a run does rests on these.
// Then both directions by the kernels for any tensor cores. Where there is cuDNN, its forward, too, and which of both a
// run takes: core/ops/attention_cudnn_cuda.cpp has the table that rests on this.
//
// usage: gpu_attention_speed [BATCH LENGTH HEADS DIM]     needs a GPU; prints up to four lines a shape, with cuDNN two
// more; of one causal shape, or of a table's
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>

#include <cuda_runtime_api.h>

#include "core/device/cuda_runtime.h"
#include "core/ops/attention.h"
#include "core/ops/attention_cudnn_cuda.h"
#include "core/ops/attention_kernels.h"
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
    {32, 1024, 12, 32, true}, {16, 1024, 20, 80, true}, {16, 1024, 24, 96, true},
};

/// Other lengths, for the table of what cuDNN does faster.
constexpr Shapes kMoreShapes[] = {
    {128, 256, 12, 64, true},  {64, 512, 12, 64, true},   {16, 2048, 12, 64, true},   {2, 16384, 12, 64, true},
    {64, 256, 32, 128, true},  {32, 512, 32, 128, true},  {8, 2048, 32, 128, true},   {1, 16384, 16, 128, true},
    {128, 256, 12, 64, false}, {64, 512, 12, 64, false},  {32, 1024, 12, 64, false},  {16, 2048, 12, 64, false},
    {64, 256, 32, 128, false}, {32, 512, 32, 128, false}, {16, 1024, 32, 128, false}, {8, 2048, 32, 128, false},
    {2, 1024, 12, 64, true},   {2, 1024, 16, 128, true},
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

/// Milliseconds of one call of each.
struct Times {
  double forward = 0, backward = 0;
};

/// One attention on packed projections, its gradients into a packed one.
class Measured {
 public:
  explicit Measured(const Shapes& shapes) : shapes_(shapes) {
    const Shape packed_shape{shapes_.batch, shapes_.length, 3, shapes_.heads, shapes_.dim};
    const Tensor packed = normal(packed_shape, shapes_.dtype, 1),
                 gradient = Tensor::empty(packed_shape, shapes_.dtype, kGpu);
    dout_ = normal({shapes_.batch, shapes_.length, shapes_.heads, shapes_.dim}, shapes_.dtype, 2);
    q_ = packed.select(2, 0);
    k_ = packed.select(2, 1);
    v_ = packed.select(2, 2);
    into_ = {gradient.select(2, 0), gradient.select(2, 1), gradient.select(2, 2)};
    options_.causal = shapes_.is_causal;
    result_ = attention(q_, k_, v_, options_);
  }

  /// Whether more than one kernel does it.
  bool has_choices() const { return shapes_.dtype == DType::bf16 && (shapes_.dim == 64 || shapes_.dim == 128); }

  /// By the kernels in force; a direction of 0 is not measured.
  Times time(bool forward, bool backward) const {
    Times times;
    if (forward) times.forward = median_ms([&] { attention(q_, k_, v_, options_); });
    if (backward) {
      times.backward = median_ms([&] { attention_backward(q_, k_, v_, result_, dout_, options_, into_); });
    }
    return times;
  }

  AttentionArgs forward_args() const {
    return {q_.view(),          k_.view(), v_.view(), View{},           result_.out.view(),
            result_.lse.view(), View{},    1,         shapes_.is_causal};
  }

  void print(const char* whose, const Times& times) const {
    const double pairs = static_cast<double>(shapes_.batch * shapes_.heads * shapes_.length) *
                         static_cast<double>(shapes_.is_causal ? shapes_.length + 1 : 2 * shapes_.length) / 2;
    const double forward_work = 4 * pairs * static_cast<double>(shapes_.dim), backward_work = 2.5 * forward_work;
    const auto rate = [](double work, double ms) { return ms > 0 ? work / ms / 1e9 : 0; };
    const std::string what = cat(shapes_.dtype, shapes_.is_causal ? " causal" : " full", " B ", shapes_.batch, " T ",
                                 shapes_.length, " H ", shapes_.heads, " D ", shapes_.dim);
    std::printf("%-8s %-34s forward %7.4f ms %4.0f TFLOP/s  backward %7.4f ms %4.0f TFLOP/s  both %7.4f ms\n", whose,
                what.c_str(), times.forward, rate(forward_work, times.forward), times.backward,
                rate(backward_work, times.backward), times.forward + times.backward);
  }

 private:
  Shapes shapes_;
  Tensor q_, k_, v_, dout_;
  AttentionGradients into_;
  AttentionOptions options_;
  AttentionResult result_;
};

void measure(const Shapes& shapes) {
  const Measured measured(shapes);
  Times own;
  {
    const AttentionKernelScope kernels(AttentionKernels::own);
    own = measured.time(true, true);
    measured.print("castor", own);
  }
  if (!measured.has_choices()) return;
  for (const AttentionKernels kernels : {AttentionKernels::own_kept, AttentionKernels::own_twice}) {
    const AttentionKernelScope scope(kernels);
    measured.print(kernels == AttentionKernels::own_kept ? "  kept" : "  twice", measured.time(false, true));
  }
  {
    const AttentionKernelScope scope(AttentionKernels::own_warps);
    measured.print("  warps", measured.time(true, true));
  }
  if (attention_library(kGpu).empty()) return;
  const AttentionArgs args = measured.forward_args();
  char ratio[32] = "not measured";
  {
    const AttentionKernelScope kernels(AttentionKernels::cudnn);
    if (cuda::cudnn_does({kGpu}, args)) {
      const Times cudnn = measured.time(true, false);
      measured.print("cudnn", cudnn);
      std::snprintf(ratio, sizeof(ratio), "%.3f of own", cudnn.forward / own.forward);
    }
  }
  std::printf("         %s, a run takes %s (%s)\n", ratio, cuda::cudnn_does({kGpu}, args) ? "cudnn" : "own",
              cuda::cudnn_plan_text(kGpu, args).c_str());
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  const bool is_usable = argc == 1 || (argc == 5 && std::all_of(argv + 1, argv + argc,
                                                                [](const char* size) { return std::atoll(size) > 0; }));
  if (!is_usable) {
    std::fprintf(stderr, "usage: gpu_attention_speed [BATCH LENGTH HEADS DIM]\n");
    return 2;
  }
  const std::string library = attention_library(kGpu);
  std::printf("attention's kernels: castor%s%s\n", library.empty() ? "" : " and ", library.c_str());
  if (argc == 5) {
    measure({std::atoll(argv[1]), std::atoll(argv[2]), std::atoll(argv[3]), std::atoll(argv[4]), true});
    return 0;
  }
  for (const Shapes& shapes : kShapes) measure(shapes);
  if (library.empty()) return 0;
  for (const Shapes& shapes : kMoreShapes) measure(shapes);
  return 0;
}
