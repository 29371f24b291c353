// Adafactor on CUDA; how rows and columns are walked is factored_cuda.cuh's.
#include <cmath>

#include "core/ops/factored_cuda.cuh"

namespace castor {
namespace {

using cuda::blocks_for;
using cuda::kStepThreads;

/// One of the two moments. fresh = beta2 old + (1 - beta2) (sum / length + epsilon), or old where there are no sums.
struct Moments {
  const float* old;
  const double* sums;
  float* fresh;  // may be nullptr
  double length, beta2, epsilon;
  __device__ float operator()(std::int64_t i) const {
    const double before = static_cast<double>(old[i]);
    const float value =
        static_cast<float>(sums != nullptr ? beta2 * before + (1 - beta2) * (sums[i] / length + epsilon) : before);
    if (fresh == nullptr) return old[i];
    fresh[i] = value;
    return value;
  }
};

/// A block of threads a batch; thread 0 adds the rows in order.
__global__ void __launch_bounds__(kStepThreads) row_moments(const Moments moments, float* factors, std::int64_t rows) {
  __shared__ double shared_mean;
  const std::int64_t first = blockIdx.x * rows;
  for (std::int64_t r = threadIdx.x; r < rows; r += kStepThreads) factors[first + r] = moments(first + r);
  __syncthreads();
  if (threadIdx.x == 0) {
    double total = 0;
    for (std::int64_t r = 0; r < rows; ++r) total += static_cast<double>(factors[first + r]);
    shared_mean = total / static_cast<double>(rows);
  }
  __syncthreads();
  for (std::int64_t r = threadIdx.x; r < rows; r += kStepThreads)
    factors[first + r] = static_cast<float>(std::sqrt(shared_mean / static_cast<double>(factors[first + r])));
}

__global__ void __launch_bounds__(kStepThreads)
    column_moments(const Moments moments, float* factors, std::int64_t count) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kStepThreads + threadIdx.x;
  if (i < count) factors[i] = static_cast<float>(1 / std::sqrt(static_cast<double>(moments(i))));
}

using cuda::Direction;

struct DirectionOf {
  Direction direction;
  cuda::AnyGradient gradient;
  const float* square;
  __device__ float operator()(std::int64_t i) const {
    return direction(i, gradient(i), square != nullptr ? square[i] : 0.0f);
  }
};

struct AdafactorUpdate {
  Direction direction;
  bool has_mean;
  __device__ void operator()(std::int64_t i, float g, float (&x)[3]) const {
    const AdafactorScalars& s = direction.s;
    float update = direction(i, g, x[2]) * s.update_factor;
    x[2] = optim::second_moment(s, g, x[2]);
    if (has_mean) {
      x[1] = math::fma(s.beta1, x[1], (1.0f - s.beta1) * update);
      update = x[1];
    }
    x[0] = math::fma(s.keep, x[0], -update);
  }
};

struct ScaledGradient {
  cuda::AnyGradient gradient;
  float factor;
  __device__ float operator()(std::int64_t i, std::int64_t, std::int64_t) const { return factor * gradient(i); }
};

}  // namespace

void run(const Cuda& cuda, const FactoredSquaresArgs& args) {
  cuda::add_factored_squares(cuda, FactoredSquaresArgs::kName, args.shape, args.offset, args.gradient.numel(),
                             args.row_sums, args.column_sums,
                             ScaledGradient{cuda::AnyGradient(args.gradient), args.gradient_factor});
}

void run(const Cuda& cuda, const FactoredMomentsArgs& args) {
  const FactoredShape& shape = args.shape;
  if (shape.batch == 0) return;
  const Moments row{args.row.as<float>(),
                    args.row_sums.as<double>(),
                    args.new_row.as<float>(),
                    static_cast<double>(shape.columns),
                    args.beta2,
                    args.epsilon};
  const Moments column{args.column.as<float>(),
                       args.column_sums.as<double>(),
                       args.new_column.as<float>(),
                       static_cast<double>(shape.rows),
                       args.beta2,
                       args.epsilon};
  row_moments<<<static_cast<unsigned>(shape.batch), kStepThreads, 0, stream_of(cuda)>>>(
      row, args.row_factor.as<float>(), shape.rows);
  if (shape.column_count() > 0) {
    column_moments<<<blocks_for(shape.column_count()), kStepThreads, 0, stream_of(cuda)>>>(
        column, args.column_factor.as<float>(), shape.column_count());
  }
  check_cuda(cudaGetLastError(), FactoredMomentsArgs::kName, cuda.device);
}

void run(const Cuda& cuda, const AdafactorSquaresArgs& args) {
  const Direction direction{args.scalars, args.shape, args.offset, args.row_factor.as<float>(),
                            args.column_factor.as<float>()};
  cuda::sum_blocks_of(cuda, AdafactorSquaresArgs::kName,
                      DirectionOf{direction, cuda::AnyGradient(args.gradient), args.exp_avg_sq.as<float>()}, args.sums,
                      args.gradient.numel());
}

void run(const Cuda& cuda, const AdafactorArgs& args) {
  const Direction direction{args.scalars, args.shape, args.offset, args.row_factor.as<float>(),
                            args.column_factor.as<float>()};
  const cuda::States<3> states{{args.parameter.as<float>(), args.exp_avg.as<float>(), args.exp_avg_sq.as<float>()}};
  cuda::step(cuda, AdafactorArgs::kName, AdafactorUpdate{direction, args.exp_avg.defined()}, states, args.gradient,
             args.copy, args.parameter.numel());
}

}  // namespace castor
