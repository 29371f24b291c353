// SGD, Adam and Lamb on CUDA, and the sums of squares: optim_element.h over the walk of optim_cuda.cuh, with the CPU's
// bits.
#include <vector>

#include "core/ops/optim_cuda.cuh"

namespace castor {
namespace {

// A warp a segment: its lanes fetch 128 values at a time, and every lane adds them one after the other. What bounds it
// is the chain of additions, so the fetches and shuffles of a full batch are unrolled out of its way.
__global__ void fold_kernel(const double* values, const std::int64_t* begins, double* out, std::int64_t segments) {
  constexpr int kAhead = 4;
  const std::int64_t segment = (blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x) / 32;
  if (segment >= segments) return;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const std::int64_t begin = begins[segment], end = begins[segment + 1];
  double sum = 0, next[kAhead];
  const auto fetch = [&](std::int64_t at) {
#pragma unroll
    for (int k = 0; k < kAhead; ++k) next[k] = at + 32 * k + lane < end ? values[at + 32 * k + lane] : 0;
  };
  fetch(begin);
  for (std::int64_t at = begin; at < end; at += 32 * kAhead) {
    double own[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) own[k] = next[k];
    fetch(at + 32 * kAhead);
    if (at + 32 * kAhead <= end) {
#pragma unroll
      for (int i = 0; i < 32 * kAhead; ++i) sum += __shfl_sync(0xffffffff, own[i / 32], i % 32);
    } else {
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        const std::int64_t left = end - at - 32 * k;
        for (int i = 0; i < 32 && i < left; ++i) sum += __shfl_sync(0xffffffff, own[k], i);
      }
    }
  }
  if (lane == 0) out[segment] = sum;
}

struct AdamUpdate {
  AdamScalars s;
  bool keeps_largest;
  __device__ void operator()(std::int64_t, float g, float (&x)[4]) const {
    const optim::AdamElement e = optim::adam_element(s, g, x[0], x[1], x[2], x[3], keeps_largest);
    x[0] = e.parameter;
    x[1] = e.mean;
    x[2] = e.square;
    x[3] = e.largest;
  }
};

struct SgdUpdate {
  SgdScalars s;
  bool has_buffer;
  __device__ void operator()(std::int64_t, float g, float (&x)[2]) const {
    const optim::SgdElement e = optim::sgd_element(s, g, x[0], x[1], has_buffer);
    x[0] = e.parameter;
    x[1] = e.momentum;
  }
};

struct LambUpdate {
  LambScalars s;
  float step_size;
  __device__ void operator()(std::int64_t, float g, float (&x)[3]) const {
    const optim::LambElement e = optim::lamb_element(s, g, x[0], x[1], x[2]);
    x[0] = math::fma(-step_size, e.update, x[0]);
    x[1] = e.mean;
    x[2] = e.square;
  }
};

struct LambDirection {
  LambScalars s;
  cuda::AnyGradient gradient;
  const float *p, *mean, *square;
  __device__ float operator()(std::int64_t i) const {
    return optim::lamb_element(s, gradient(i), p[i], mean[i], square[i]).update;
  }
};

}  // namespace

void run(const Cuda& cuda, const BlockSquaresArgs& args) {
  std::vector<cuda::SquaresJob<cuda::AnyGradient>> jobs;
  for (const auto& [x, sums] : args.pairs) jobs.push_back({cuda::AnyGradient(x), sums.as<double>(), x.numel()});
  cuda::sum_blocks_of_all(cuda, BlockSquaresArgs::kName, jobs);
}

void run(const Cuda& cuda, const FoldSegmentsArgs& args) {
  constexpr int kThreads = 128;
  const std::int64_t segments = args.out.numel();
  const auto blocks = static_cast<unsigned>((32 * segments + kThreads - 1) / kThreads);
  fold_kernel<<<blocks, kThreads, 0, stream_of(cuda)>>>(args.values.as<double>(), args.begins.as<std::int64_t>(),
                                                        args.out.as<double>(), segments);
  check_cuda(cudaGetLastError(), FoldSegmentsArgs::kName, cuda.device);
}

void run(const Cuda& cuda, const AdamArgs& args) {
  std::vector<cuda::StepJob<4, AdamUpdate>> jobs;
  for (const AdamArgs::Range& range : args.ranges) {
    jobs.push_back({{range.scalars, range.max_exp_avg_sq.defined()},
                    {{range.parameter.as<float>(), range.exp_avg.as<float>(), range.exp_avg_sq.as<float>(),
                      range.max_exp_avg_sq.as<float>()}},
                    range.gradient,
                    range.copy,
                    range.parameter.numel()});
  }
  cuda::step_all(cuda, AdamArgs::kName, jobs);
}

void run(const Cuda& cuda, const SgdArgs& args) {
  std::vector<cuda::StepJob<2, SgdUpdate>> jobs;
  for (const SgdArgs::Range& range : args.ranges) {
    jobs.push_back({{range.scalars, range.momentum_buffer.defined()},
                    {{range.parameter.as<float>(), range.momentum_buffer.as<float>()}},
                    range.gradient,
                    range.copy,
                    range.parameter.numel()});
  }
  cuda::step_all(cuda, SgdArgs::kName, jobs);
}

void run(const Cuda& cuda, const LambSquaresArgs& args) {
  const std::int64_t count = args.parameter.numel();
  cuda::sum_blocks_of(cuda, LambSquaresArgs::kName, cuda::AnyGradient(args.parameter), args.parameter_sums, count);
  const LambDirection direction{args.scalars, cuda::AnyGradient(args.gradient), args.parameter.as<float>(),
                                args.exp_avg.as<float>(), args.exp_avg_sq.as<float>()};
  cuda::sum_blocks_of(cuda, LambSquaresArgs::kName, direction, args.update_sums, count);
}

void run(const Cuda& cuda, const LambArgs& args) {
  const cuda::States<3> states{{args.parameter.as<float>(), args.exp_avg.as<float>(), args.exp_avg_sq.as<float>()}};
  cuda::step(cuda, LambArgs::kName, LambUpdate{args.scalars, args.step_size}, states, args.gradient, args.copy,
             args.parameter.numel());
}

}  // namespace castor
