// The kernels that CAME has beside Adafactor's: the size of what an update is unsure of, by rows and columns, and the
// step. Rows, columns and offsets are as in optim.h.
#pragma once

#include "core/ops/optim.h"

namespace castor {

/// Numbers of one CAME step. u = update_factor g row_factor column_factor, or update_factor g / sqrt(v) for parameters
/// with one axis, where update_factor is 1 / max(1, rms(u) / clip threshold); m' = beta1 m + (1 - beta1) u.
struct CameScalars : AdafactorScalars {
  float lr = 1e-3f;  ///< and keep = 1 - lr times the decay
};

/// row_sums[b, r] += sum over columns, column_sums[b, c] += sum over rows of (u - m')^2, for one range; writes nothing
/// else.
struct CameResidualsArgs {
  static constexpr const char* kName = "came_residuals";
  View gradient, exp_avg, row_factor, column_factor;
  View row_sums, column_sums;  ///< f64
  FactoredShape shape;
  std::int64_t offset;
  CameScalars scalars;
};
Cost cost(const CameResidualsArgs& args);
void run(const Cpu& cpu, const CameResidualsArgs& args);
void run(const Cuda& cuda, const CameResidualsArgs& args);

/// m = m'; p = keep p - lr m', which is first multiplied by the confidence, row times column, where there is one; v is
/// written for parameters with one axis.
struct CameArgs {
  static constexpr const char* kName = "came";
  View parameter, gradient, copy, exp_avg;
  View row_factor, column_factor, row_confidence, column_confidence, exp_avg_sq;  ///< all four, or exp_avg_sq
  FactoredShape shape;
  std::int64_t offset;
  CameScalars scalars;
};
Cost cost(const CameArgs& args);
void run(const Cpu& cpu, const CameArgs& args);
void run(const Cuda& cuda, const CameArgs& args);

/// Adds a range's squared residuals to `row_sums` and `column_sums`, as adafactor_squares does. Does nothing on meta.
///   gradient  undefined = zeros
///   exp_avg   f32 [count], before this step
///   moments   the second moments after this step; factored
void came_residuals(const Tensor& gradient, const Tensor& exp_avg, const AdafactorMoments& moments,
                    const FactoredShape& shape, std::int64_t offset, const CameScalars& scalars,
                    std::span<double> row_sums, std::span<double> column_sums);

/// One CAME step on a range.
///   moments    the second moments after this step or, with one axis, before it
///   residuals  the moments of residuals after this step; ignored with one axis
/// Errors as adam_step.
void came_step(const StepTensors& tensors, const Tensor& exp_avg, const AdafactorMoments& moments,
               const AdafactorMoments& residuals, const FactoredShape& shape, std::int64_t offset,
               const CameScalars& scalars);

}  // namespace castor
