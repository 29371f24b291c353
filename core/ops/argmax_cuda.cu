// Position of the largest element on CUDA: a warp an output where the axis is innermost in memory, otherwise a thread
// an output, so that neighbours read neighbours.
//
// Delicate: the first of equal elements wins, and the first NaN wins over everything.
#include "core/device/cuda_runtime.h"
#include "core/ops/reduce.h"
#include "core/ops/reduce_plan.h"

namespace castor {
namespace {

constexpr int kThreads = 256;

template <class C>
struct Best {
  C value;
  std::int64_t at;

  __device__ void meet(C other, std::int64_t other_at) {
    const bool wins = other > value || (other != other && value == value);
    const bool loses = value > other || (value != value && other == other);
    if (wins || (!loses && other_at < at)) {
      value = other;
      at = other_at;
    }
  }
};

template <class T, int kLanes>
__global__ void __launch_bounds__(kThreads)
    find_largest(const T* x, std::int64_t* index, const __grid_constant__ ReducePlan plan, std::int64_t count,
                 std::int64_t stride) {
  const std::int64_t output = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kLanes;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  if (output >= plan.outputs) return;
  std::int64_t at_x, at_y;
  plan.kept.offsets(output, plan.kept.ndim, at_x, at_y);
  x += at_x;
  Best<decltype(load(T{}))> best{load(x[0]), 0};
  for (std::int64_t i = lane; i < count; i += kLanes) best.meet(load(x[i * stride]), i);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    const auto value = __shfl_down_sync(0xFFFFFFFFu, best.value, width);
    const std::int64_t at = __shfl_down_sync(0xFFFFFFFFu, best.at, width);
    best.meet(value, at);
  }
  if (lane == 0) index[at_y] = best.at;
}

template <class T>
void run_dtype(const Cuda& cuda, const ArgmaxArgs& args) {
  // The plan orders the kept axes; the reduced one is a single axis, possibly of size 1.
  const ReducePlan plan(args.x, args.index, 1u << args.axis);
  if (plan.outputs == 0) return;
  const std::int64_t count = args.x.size[args.axis], stride = args.x.stride[args.axis];
  const std::int64_t threads = plan.outputs * (plan.by_columns ? 1 : 32);
  const auto blocks = static_cast<unsigned>((threads + kThreads - 1) / kThreads);
  if (plan.by_columns) {
    find_largest<T, 1>
        <<<blocks, kThreads, 0, stream_of(cuda)>>>(args.x.as<T>(), args.index.as<std::int64_t>(), plan, count, stride);
  } else {
    find_largest<T, 32>
        <<<blocks, kThreads, 0, stream_of(cuda)>>>(args.x.as<T>(), args.index.as<std::int64_t>(), plan, count, stride);
  }
  check_cuda(cudaGetLastError(), ArgmaxArgs::kName, cuda.device);
}

}  // namespace

void run(const Cuda& cuda, const ArgmaxArgs& args) {
  switch (args.x.dtype) {
    case DType::f64:
      return run_dtype<double>(cuda, args);
    case DType::i64:
      return run_dtype<std::int64_t>(cuda, args);
    case DType::i32:
      return run_dtype<std::int32_t>(cuda, args);
    default:
      return visit_training_float(args.x.dtype, ArgmaxArgs::kName,
                                  [&](auto tag) { run_dtype<typename decltype(tag)::type>(cuda, args); });
  }
}

}  // namespace castor
