// Checks of Adafactor. Its statistics are small arrays on the host, because owners of other ranges continue them; they
// go to the device and back around each kernel.
#include "core/ops/factored_checks.h"

namespace castor {

using namespace optim_checks;

Cost cost(const FactoredSquaresArgs& args) {
  return {5.0 * static_cast<double>(args.gradient.numel()),
          streamed_bytes({&args.gradient}, {&args.row_sums, &args.column_sums})};
}
Cost cost(const FactoredMomentsArgs& args) {
  return {6.0 * static_cast<double>(args.row.numel() + args.column.numel()),
          streamed_bytes(
              {&args.row, &args.column, &args.row_sums, &args.column_sums, &args.row_factor, &args.column_factor}, {})};
}
Cost cost(const AdafactorSquaresArgs& args) {
  return {5.0 * static_cast<double>(args.gradient.numel()), streamed_bytes({&args.gradient, &args.exp_avg_sq}, {})};
}
Cost cost(const AdafactorArgs& args) {
  return {8.0 * static_cast<double>(args.parameter.numel()),
          streamed_bytes({&args.gradient, &args.copy}, {&args.parameter, &args.exp_avg, &args.exp_avg_sq})};
}

FactoredShape factored_shape(const Shape& shape) {
  if (shape.ndim() < 2) throw ShapeError(cat("factored_shape: expected at least two axes, got ", shape));
  FactoredShape result{1, shape[shape.ndim() - 2], shape[shape.ndim() - 1]};
  for (int i = 0; i < shape.ndim() - 2; ++i) result.batch *= shape[i];
  return result;
}

void adafactor_squares(const Tensor& gradient, double gradient_factor, const FactoredShape& shape, std::int64_t offset,
                       std::span<double> row_sums, std::span<double> column_sums) {
  constexpr const char* kOp = FactoredSquaresArgs::kName;
  if (!gradient.defined()) return;
  check_gradient_dtype(kOp, gradient);
  check_flat(kOp, "the gradient", gradient, gradient);
  check_range(kOp, shape, offset, gradient.numel());
  check_sums(kOp, shape, row_sums, column_sums);
  if (gradient.numel() == 0) return;
  const Device device = gradient.device();
  const Tensor rows = small_tensor<double>(row_sums, device), columns = small_tensor<double>(column_sums, device);
  dispatch(device, FactoredSquaresArgs{gradient.view(), rows.view(), columns.view(), shape, offset,
                                       static_cast<float>(gradient_factor)});
  if (device.is_meta()) return;
  rows.copy_to_host(row_sums.data(), row_sums.size_bytes());
  columns.copy_to_host(column_sums.data(), column_sums.size_bytes());
}

AdafactorMoments adafactor_moments(const AdafactorMoments& before, const FactoredShape& shape,
                                   std::span<const double> row_sums, std::span<const double> column_sums, double beta2,
                                   double epsilon) {
  constexpr const char* kOp = FactoredMomentsArgs::kName;
  check_moments(kOp, before, shape);
  check_sums(kOp, shape, row_sums, column_sums);
  const Device device = common_device(kOp, {&before.row, &before.column});
  const Tensor rows = small_tensor(row_sums, device), columns = small_tensor(column_sums, device);
  AdafactorMoments after{Tensor::empty_like(before.row), Tensor::empty_like(before.column), before.exp_avg_sq};
  const Tensor row_factor = empty_workspace(shape.row_count(), DType::f32, device);
  const Tensor column_factor = empty_workspace(shape.column_count(), DType::f32, device);
  dispatch(device,
           FactoredMomentsArgs{before.row.view(), before.column.view(), rows.view(), columns.view(), after.row.view(),
                               after.column.view(), row_factor.view(), column_factor.view(), shape, beta2, epsilon});
  return after;
}

double adafactor_update_squares(const Tensor& gradient, const AdafactorMoments& moments, const FactoredShape& shape,
                                std::int64_t offset, const AdafactorScalars& scalars, double carry) {
  constexpr const char* kOp = AdafactorSquaresArgs::kName;
  if (!gradient.defined()) return carry;
  check_gradient_dtype(kOp, gradient);
  check_flat(kOp, "the gradient", gradient, gradient);
  check_second_moments(kOp, gradient, moments, shape, offset);
  if (gradient.numel() == 0) return carry;
  const Device device = common_device(kOp, {&gradient, &moments.row, &moments.column, &moments.exp_avg_sq});
  const Factors factors = factors_of(moments, shape);
  const Tensor sums = block_sums_for(gradient.numel(), device);
  const View second = moments.row.defined() ? View{} : moments.exp_avg_sq.view();
  dispatch(device, AdafactorSquaresArgs{gradient.view(), view_or_absent(factors.row), view_or_absent(factors.column),
                                        second, sums.view(), shape, offset, scalars});
  return add_in_order(sums, carry);
}

void adafactor_step(const StepTensors& tensors, const Tensor& exp_avg, const AdafactorMoments& moments,
                    const FactoredShape& shape, std::int64_t offset, const AdafactorScalars& scalars) {
  constexpr const char* kOp = AdafactorArgs::kName;
  check_tensors(kOp, tensors);
  check_state(kOp, "exp_avg", exp_avg, tensors.parameter);
  check_second_moments(kOp, tensors.parameter, moments, shape, offset);
  if (tensors.parameter.numel() == 0) return;
  const Device device = common_device(kOp, {&tensors.parameter, &tensors.gradient, &tensors.copy, &exp_avg,
                                            &moments.row, &moments.column, &moments.exp_avg_sq});
  const Factors factors = factors_of(moments, shape);
  const View second = moments.row.defined() ? View{} : moments.exp_avg_sq.view();
  dispatch(device, AdafactorArgs{tensors.parameter.view(), view_or_absent(tensors.gradient),
                                 view_or_absent(tensors.copy), view_or_absent(exp_avg), view_or_absent(factors.row),
                                 view_or_absent(factors.column), second, shape, offset, scalars});
}

}  // namespace castor
