// Checks of CAME; the statistics go to the device and back as Adafactor's do.
#include "core/ops/came.h"

#include "core/ops/factored_checks.h"

namespace castor {

using namespace optim_checks;

Cost cost(const CameResidualsArgs& args) {
  return {10.0 * static_cast<double>(args.exp_avg.numel()),
          streamed_bytes({&args.gradient, &args.exp_avg}, {&args.row_sums, &args.column_sums})};
}
Cost cost(const CameArgs& args) {
  return {12.0 * static_cast<double>(args.parameter.numel()),
          streamed_bytes({&args.gradient, &args.copy}, {&args.parameter, &args.exp_avg, &args.exp_avg_sq})};
}

void came_residuals(const Tensor& gradient, const Tensor& exp_avg, const AdafactorMoments& moments,
                    const FactoredShape& shape, std::int64_t offset, const CameScalars& scalars,
                    std::span<double> row_sums, std::span<double> column_sums) {
  constexpr const char* kOp = CameResidualsArgs::kName;
  check_defined(kOp, "exp_avg", exp_avg);
  check_state(kOp, "exp_avg", exp_avg, exp_avg);
  check_gradient_dtype(kOp, gradient);
  check_flat(kOp, "the gradient", gradient, exp_avg);
  check_moments(kOp, moments, shape);
  check_range(kOp, shape, offset, exp_avg.numel());
  check_sums(kOp, shape, row_sums, column_sums);
  if (exp_avg.numel() == 0) return;
  const Device device = common_device(kOp, {&gradient, &exp_avg, &moments.row, &moments.column});
  const Factors factors = factors_of(moments, shape);
  const Tensor rows = small_tensor<double>(row_sums, device), columns = small_tensor<double>(column_sums, device);
  dispatch(device, CameResidualsArgs{view_or_absent(gradient), exp_avg.view(), factors.row.view(),
                                     factors.column.view(), rows.view(), columns.view(), shape, offset, scalars});
  if (device.is_meta()) return;
  rows.copy_to_host(row_sums.data(), row_sums.size_bytes());
  columns.copy_to_host(column_sums.data(), column_sums.size_bytes());
}

void came_step(const StepTensors& tensors, const Tensor& exp_avg, const AdafactorMoments& moments,
               const AdafactorMoments& residuals, const FactoredShape& shape, std::int64_t offset,
               const CameScalars& scalars) {
  constexpr const char* kOp = CameArgs::kName;
  check_tensors(kOp, tensors);
  check_defined(kOp, "exp_avg", exp_avg);
  check_state(kOp, "exp_avg", exp_avg, tensors.parameter);
  check_second_moments(kOp, tensors.parameter, moments, shape, offset);
  const bool is_factored = moments.row.defined();
  if (is_factored) check_moments(kOp, residuals, shape);
  if (tensors.parameter.numel() == 0) return;
  const Device device =
      common_device(kOp, {&tensors.parameter, &tensors.gradient, &tensors.copy, &exp_avg, &moments.row, &moments.column,
                          &moments.exp_avg_sq, &residuals.row, &residuals.column});
  const Factors factors = factors_of(moments, shape);
  const Factors confidence = is_factored ? factors_of(residuals, shape) : Factors{};
  dispatch(device, CameArgs{tensors.parameter.view(), view_or_absent(tensors.gradient), view_or_absent(tensors.copy),
                            exp_avg.view(), view_or_absent(factors.row), view_or_absent(factors.column),
                            view_or_absent(confidence.row), view_or_absent(confidence.column),
                            is_factored ? View{} : moments.exp_avg_sq.view(), shape, offset, scalars});
}

}  // namespace castor
