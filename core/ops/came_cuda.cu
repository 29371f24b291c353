// CAME on CUDA: Adafactor's directions, and what an update is off their running mean, with the CPU's bits.
#include "core/ops/came.h"
#include "core/ops/factored_cuda.cuh"

namespace castor {
namespace {

struct Residual {
  CameScalars s;
  cuda::AnyGradient gradient;
  const float *mean, *row_factor, *column_factor;
  __device__ float operator()(std::int64_t i, std::int64_t row, std::int64_t column) const {
    const float direction = (s.gradient_factor * gradient(i)) * (row_factor[row] * column_factor[column]);
    return optim::came_element(s, direction, mean[i]).residual;
  }
};

/// x: parameter, exp_avg, exp_avg_sq.
struct CameUpdate {
  CameScalars s;
  cuda::Direction direction, confidence;  // the confidence has no row factor where a second moment is used
  __device__ void operator()(std::int64_t i, float g, float (&x)[3]) const {
    const float mean = optim::came_element(s, direction(i, g, x[2]), x[1]).mean;
    x[1] = mean;
    x[2] = optim::second_moment(s, g, x[2]);
    const float update = confidence.row_factor != nullptr ? confidence(i, mean, 0.0f) : mean;
    x[0] = math::fma(-s.lr, update, s.keep * x[0]);
  }
};

}  // namespace

void run(const Cuda& cuda, const CameResidualsArgs& args) {
  const Residual residual{args.scalars, cuda::AnyGradient(args.gradient), args.exp_avg.as<float>(),
                          args.row_factor.as<float>(), args.column_factor.as<float>()};
  cuda::add_factored_squares(cuda, CameResidualsArgs::kName, args.shape, args.offset, args.exp_avg.numel(),
                             args.row_sums, args.column_sums, residual);
}

void run(const Cuda& cuda, const CameArgs& args) {
  const cuda::Direction direction{args.scalars, args.shape, args.offset, args.row_factor.as<float>(),
                                  args.column_factor.as<float>()};
  AdafactorScalars whole;  // the confidence multiplies what is there
  whole.gradient_factor = 1.0f;
  const cuda::Direction confidence{whole, args.shape, args.offset, args.row_confidence.as<float>(),
                                   args.column_confidence.as<float>()};
  const cuda::States<3> states{{args.parameter.as<float>(), args.exp_avg.as<float>(), args.exp_avg_sq.as<float>()}};
  cuda::step(cuda, CameArgs::kName, CameUpdate{args.scalars, direction, confidence}, states, args.gradient, args.copy,
             args.parameter.numel());
}

}  // namespace castor
