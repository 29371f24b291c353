// Checks and scalars of the optimizer family. Scalars are computed in f64 and rounded once here, so that every device gets the
// same ones.
#include "core/ops/optim.h"

#include <cmath>
#include <vector>

#include "core/ops/workspace.h"

namespace castor {
namespace {

void check_flat(const char* op, const char* name, const Tensor& x, const Tensor& parameter) {
  if (!x.defined()) return;
  if (x.numel() != parameter.numel() || !x.is_contiguous()) {
    throw ShapeError(cat(op, ": ", name, " must be row-major with as many elements as the parameter ", parameter, ", got ", x));
  }
}

void check_state(const char* op, const char* name, const Tensor& x, const Tensor& parameter) {
  check_flat(op, name, x, parameter);
  if (x.defined() && x.dtype() != DType::f32) throw DTypeError(cat(op, ": ", name, " must be f32, got ", x));
}

void check_gradient_dtype(const char* op, const Tensor& x) {
  if (x.defined() && x.dtype() != DType::f32 && x.dtype() != DType::bf16 && x.dtype() != DType::f16) {
    throw DTypeError(cat(op, ": expected a gradient of f32, bf16 or f16, got ", x));
  }
}

void check_tensors(const char* op, const StepTensors& tensors) {
  if (!tensors.parameter.defined()) throw ShapeError(cat(op, ": the parameter is undefined"));
  check_state(op, "the parameter", tensors.parameter, tensors.parameter);
  check_flat(op, "the gradient", tensors.gradient, tensors.parameter);
  check_flat(op, "the copy", tensors.copy, tensors.parameter);
  check_gradient_dtype(op, tensors.gradient);
  check_gradient_dtype(op, tensors.copy);
}

void check_defined(const char* op, const char* name, const Tensor& x) {
  if (!x.defined()) throw ShapeError(cat(op, ": ", name, " is undefined"));
}

void check_offset(const char* op, std::int64_t offset) {
  if (offset < 0 || offset % kStatisticsBlock != 0) {
    throw ShapeError(cat(op, ": ranges start at multiples of ", kStatisticsBlock, " elements, got offset ", offset));
  }
}

/// Throws unless the range lies within the parameter.
void check_range(const char* op, const FactoredShape& shape, std::int64_t offset, std::int64_t count) {
  check_offset(op, offset);
  const std::int64_t total = shape.batch * shape.rows * shape.columns;
  if (offset + count > total) {
    throw ShapeError(cat(op, ": range [", offset, ", ", offset + count, ") reaches beyond the parameter's ", total, " elements"));
  }
}

template <class T>
Tensor small_tensor(std::span<const T> values, Device device) {
  const CategoryScope scope(Category::workspace);
  return Tensor::from_values(values, {static_cast<std::int64_t>(values.size())}, device);
}

Tensor empty_workspace(std::int64_t count, DType dtype, Device device) {
  const CategoryScope scope(Category::workspace);
  return Tensor::empty({count}, dtype, device);
}

Tensor block_sums_for(std::int64_t count, Device device) {
  return empty_workspace((count + kStatisticsBlock - 1) / kStatisticsBlock, DType::f64, device);
}

double add_in_order(const Tensor& sums, double carry) {
  if (sums.device().is_meta()) return carry;
  for (const double sum : sums.to_vector<double>()) carry += sum;
  return carry;
}

double streamed_bytes(std::initializer_list<const View*> reads, std::initializer_list<const View*> updates) {
  double bytes = 0;
  for (const View* view : reads) bytes += static_cast<double>(view->bytes());
  for (const View* view : updates) bytes += 2 * static_cast<double>(view->bytes());
  return bytes;
}

/// The factors of a factored update, or both undefined.
struct Factors {
  Tensor row, column;
};

Factors factors_of(const AdafactorMoments& moments, const FactoredShape& shape) {
  if (!moments.row.defined()) return {};
  const Device device = moments.row.device();
  Factors factors{empty_workspace(shape.row_count(), DType::f32, device), empty_workspace(shape.column_count(), DType::f32, device)};
  dispatch(device, FactoredMomentsArgs{moments.row.view(), moments.column.view(), {}, {}, {}, {}, factors.row.view(),
                                       factors.column.view(), shape, 1, 0});
  return factors;
}

void check_moments(const char* op, const AdafactorMoments& moments, const FactoredShape& shape) {
  check_defined(op, "the row moment", moments.row);
  check_defined(op, "the column moment", moments.column);
  if (moments.row.numel() != shape.row_count() || moments.column.numel() != shape.column_count() || !moments.row.is_contiguous() ||
      !moments.column.is_contiguous()) {
    throw ShapeError(cat(op, ": expected ", shape.row_count(), " row and ", shape.column_count(), " column moments, got ", moments.row,
                         " and ", moments.column));
  }
  if (moments.row.dtype() != DType::f32 || moments.column.dtype() != DType::f32) {
    throw DTypeError(cat(op, ": moments must be f32, got ", moments.row, " and ", moments.column));
  }
}

void check_update(const char* op, const Tensor& like, const AdafactorMoments& moments, const FactoredShape& shape, std::int64_t offset) {
  if (moments.row.defined()) {
    check_moments(op, moments, shape);
    check_range(op, shape, offset, like.numel());
  } else {
    check_defined(op, "the second moment", moments.exp_avg_sq);
    check_offset(op, offset);
    check_state(op, "the second moment", moments.exp_avg_sq, like);
  }
}

}  // namespace

Cost cost(const BlockSquaresArgs& args) { return {2.0 * static_cast<double>(args.x.numel()), streamed_bytes({&args.x, &args.sums}, {})}; }
Cost cost(const AdamArgs& args) {
  return {14.0 * static_cast<double>(args.parameter.numel()),
          streamed_bytes({&args.gradient, &args.copy}, {&args.parameter, &args.exp_avg, &args.exp_avg_sq, &args.max_exp_avg_sq})};
}
Cost cost(const SgdArgs& args) {
  return {7.0 * static_cast<double>(args.parameter.numel()),
          streamed_bytes({&args.gradient, &args.copy}, {&args.parameter, &args.momentum_buffer})};
}
Cost cost(const LambSquaresArgs& args) {
  return {18.0 * static_cast<double>(args.parameter.numel()),
          streamed_bytes({&args.parameter, &args.gradient, &args.exp_avg, &args.exp_avg_sq}, {})};
}
Cost cost(const LambArgs& args) {
  return {16.0 * static_cast<double>(args.parameter.numel()),
          streamed_bytes({&args.gradient, &args.copy}, {&args.parameter, &args.exp_avg, &args.exp_avg_sq})};
}
Cost cost(const FactoredSquaresArgs& args) {
  return {5.0 * static_cast<double>(args.gradient.numel()), streamed_bytes({&args.gradient}, {&args.row_sums, &args.column_sums})};
}
Cost cost(const FactoredMomentsArgs& args) {
  return {6.0 * static_cast<double>(args.row.numel() + args.column.numel()),
          streamed_bytes({&args.row, &args.column, &args.row_sums, &args.column_sums, &args.row_factor, &args.column_factor}, {})};
}
Cost cost(const AdafactorSquaresArgs& args) {
  return {5.0 * static_cast<double>(args.gradient.numel()), streamed_bytes({&args.gradient, &args.exp_avg_sq}, {})};
}
Cost cost(const AdafactorArgs& args) {
  return {8.0 * static_cast<double>(args.parameter.numel()),
          streamed_bytes({&args.gradient, &args.copy}, {&args.parameter, &args.exp_avg, &args.exp_avg_sq})};
}

double sum_squares(const Tensor& x, double carry) {
  constexpr const char* kOp = "sum_squares";
  check_gradient_dtype(kOp, x);
  if (!x.is_contiguous()) throw ShapeError(cat(kOp, ": expected a row-major tensor, got ", x, " with strides ", x.strides()));
  if (x.numel() == 0) return carry;
  const Tensor sums = block_sums_for(x.numel(), x.device());
  dispatch(x.device(), BlockSquaresArgs{x.view(), sums.view()});
  return add_in_order(sums, carry);
}

AdamScalars adam_scalars(const AdamOptions& options, std::int64_t step, double gradient_factor) {
  if (step < 1) throw ShapeError(cat("adam_scalars: steps count from 1, got ", step));
  const double correction1 = 1 - std::pow(options.beta1, static_cast<double>(step));
  const double correction2 = 1 - std::pow(options.beta2, static_cast<double>(step));
  const double decoupled = options.is_decoupled ? options.weight_decay : 0, l2 = options.is_decoupled ? 0 : options.weight_decay;
  return {static_cast<float>(gradient_factor),
          static_cast<float>(options.beta1),
          static_cast<float>(1 - options.beta1),
          static_cast<float>(options.beta2),
          static_cast<float>(1 - options.beta2),
          static_cast<float>(options.lr / correction1),
          static_cast<float>(1 / std::sqrt(correction2)),
          static_cast<float>(options.epsilon),
          static_cast<float>(1 - options.lr * decoupled),
          static_cast<float>(l2)};
}

void adam_step(const StepTensors& tensors, const Tensor& exp_avg, const Tensor& exp_avg_sq, const Tensor& max_exp_avg_sq,
               const AdamScalars& scalars) {
  constexpr const char* kOp = AdamArgs::kName;
  check_tensors(kOp, tensors);
  check_defined(kOp, "exp_avg", exp_avg);
  check_defined(kOp, "exp_avg_sq", exp_avg_sq);
  check_state(kOp, "exp_avg", exp_avg, tensors.parameter);
  check_state(kOp, "exp_avg_sq", exp_avg_sq, tensors.parameter);
  check_state(kOp, "max_exp_avg_sq", max_exp_avg_sq, tensors.parameter);
  const Device device =
      common_device(kOp, {&tensors.parameter, &tensors.gradient, &tensors.copy, &exp_avg, &exp_avg_sq, &max_exp_avg_sq});
  dispatch(device, AdamArgs{tensors.parameter.view(), view_or_absent(tensors.gradient), view_or_absent(tensors.copy), exp_avg.view(),
                            exp_avg_sq.view(), view_or_absent(max_exp_avg_sq), scalars});
}

void sgd_step(const StepTensors& tensors, const Tensor& momentum_buffer, const SgdScalars& scalars) {
  constexpr const char* kOp = SgdArgs::kName;
  check_tensors(kOp, tensors);
  check_state(kOp, "the momentum buffer", momentum_buffer, tensors.parameter);
  const Device device = common_device(kOp, {&tensors.parameter, &tensors.gradient, &tensors.copy, &momentum_buffer});
  dispatch(device, SgdArgs{tensors.parameter.view(), view_or_absent(tensors.gradient), view_or_absent(tensors.copy),
                           view_or_absent(momentum_buffer), scalars});
}

LambSquares lamb_squares(const StepTensors& tensors, const Tensor& exp_avg, const Tensor& exp_avg_sq, const LambScalars& scalars,
                         LambSquares carry) {
  constexpr const char* kOp = LambSquaresArgs::kName;
  check_tensors(kOp, tensors);
  check_defined(kOp, "exp_avg", exp_avg);
  check_defined(kOp, "exp_avg_sq", exp_avg_sq);
  check_state(kOp, "exp_avg", exp_avg, tensors.parameter);
  check_state(kOp, "exp_avg_sq", exp_avg_sq, tensors.parameter);
  const Device device = common_device(kOp, {&tensors.parameter, &tensors.gradient, &exp_avg, &exp_avg_sq});
  const Tensor parameter_sums = block_sums_for(tensors.parameter.numel(), device);
  const Tensor update_sums = block_sums_for(tensors.parameter.numel(), device);
  dispatch(device, LambSquaresArgs{tensors.parameter.view(), view_or_absent(tensors.gradient), exp_avg.view(), exp_avg_sq.view(),
                                   parameter_sums.view(), update_sums.view(), scalars});
  return {add_in_order(parameter_sums, carry.parameter), add_in_order(update_sums, carry.update)};
}

void lamb_step(const StepTensors& tensors, const Tensor& exp_avg, const Tensor& exp_avg_sq, const LambScalars& scalars, double step_size) {
  constexpr const char* kOp = LambArgs::kName;
  check_tensors(kOp, tensors);
  check_defined(kOp, "exp_avg", exp_avg);
  check_defined(kOp, "exp_avg_sq", exp_avg_sq);
  check_state(kOp, "exp_avg", exp_avg, tensors.parameter);
  check_state(kOp, "exp_avg_sq", exp_avg_sq, tensors.parameter);
  const Device device = common_device(kOp, {&tensors.parameter, &tensors.gradient, &tensors.copy, &exp_avg, &exp_avg_sq});
  dispatch(device, LambArgs{tensors.parameter.view(), view_or_absent(tensors.gradient), view_or_absent(tensors.copy), exp_avg.view(),
                            exp_avg_sq.view(), scalars, static_cast<float>(step_size)});
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
  if (static_cast<std::int64_t>(row_sums.size()) != shape.row_count() ||
      static_cast<std::int64_t>(column_sums.size()) != shape.column_count()) {
    throw ShapeError(cat(kOp, ": expected ", shape.row_count(), " row and ", shape.column_count(), " column sums, got ", row_sums.size(),
                         " and ", column_sums.size()));
  }
  if (gradient.numel() == 0) return;
  const Device device = gradient.device();
  const Tensor rows = small_tensor<double>(row_sums, device), columns = small_tensor<double>(column_sums, device);
  dispatch(device, FactoredSquaresArgs{gradient.view(), rows.view(), columns.view(), shape, offset, static_cast<float>(gradient_factor)});
  if (device.is_meta()) return;
  rows.copy_to_host(row_sums.data(), row_sums.size_bytes());
  columns.copy_to_host(column_sums.data(), column_sums.size_bytes());
}

AdafactorMoments adafactor_moments(const AdafactorMoments& before, const FactoredShape& shape, std::span<const double> row_sums,
                                   std::span<const double> column_sums, double beta2, double epsilon) {
  constexpr const char* kOp = FactoredMomentsArgs::kName;
  check_moments(kOp, before, shape);
  if (static_cast<std::int64_t>(row_sums.size()) != shape.row_count() ||
      static_cast<std::int64_t>(column_sums.size()) != shape.column_count()) {
    throw ShapeError(cat(kOp, ": expected ", shape.row_count(), " row and ", shape.column_count(), " column sums, got ", row_sums.size(),
                         " and ", column_sums.size()));
  }
  const Device device = common_device(kOp, {&before.row, &before.column});
  const Tensor rows = small_tensor(row_sums, device), columns = small_tensor(column_sums, device);
  AdafactorMoments after{Tensor::empty_like(before.row), Tensor::empty_like(before.column), before.exp_avg_sq};
  const Tensor row_factor = empty_workspace(shape.row_count(), DType::f32, device);
  const Tensor column_factor = empty_workspace(shape.column_count(), DType::f32, device);
  dispatch(device, FactoredMomentsArgs{before.row.view(), before.column.view(), rows.view(), columns.view(), after.row.view(),
                                       after.column.view(), row_factor.view(), column_factor.view(), shape, beta2, epsilon});
  return after;
}

double adafactor_update_squares(const Tensor& gradient, const AdafactorMoments& moments, const FactoredShape& shape, std::int64_t offset,
                                const AdafactorScalars& scalars, double carry) {
  constexpr const char* kOp = AdafactorSquaresArgs::kName;
  if (!gradient.defined()) return carry;
  check_gradient_dtype(kOp, gradient);
  check_flat(kOp, "the gradient", gradient, gradient);
  check_update(kOp, gradient, moments, shape, offset);
  if (gradient.numel() == 0) return carry;
  const Device device = common_device(kOp, {&gradient, &moments.row, &moments.column, &moments.exp_avg_sq});
  const Factors factors = factors_of(moments, shape);
  const Tensor sums = block_sums_for(gradient.numel(), device);
  const View second = moments.row.defined() ? View{} : moments.exp_avg_sq.view();
  dispatch(device, AdafactorSquaresArgs{gradient.view(), view_or_absent(factors.row), view_or_absent(factors.column), second, sums.view(),
                                        shape, offset, scalars});
  return add_in_order(sums, carry);
}

void adafactor_step(const StepTensors& tensors, const Tensor& exp_avg, const AdafactorMoments& moments, const FactoredShape& shape,
                    std::int64_t offset, const AdafactorScalars& scalars) {
  constexpr const char* kOp = AdafactorArgs::kName;
  check_tensors(kOp, tensors);
  check_state(kOp, "exp_avg", exp_avg, tensors.parameter);
  check_update(kOp, tensors.parameter, moments, shape, offset);
  if (tensors.parameter.numel() == 0) return;
  const Device device = common_device(kOp, {&tensors.parameter, &tensors.gradient, &tensors.copy, &exp_avg, &moments.row, &moments.column,
                                            &moments.exp_avg_sq});
  const Factors factors = factors_of(moments, shape);
  const View second = moments.row.defined() ? View{} : moments.exp_avg_sq.view();
  dispatch(device, AdafactorArgs{tensors.parameter.view(), view_or_absent(tensors.gradient), view_or_absent(tensors.copy),
                                 view_or_absent(exp_avg), view_or_absent(factors.row), view_or_absent(factors.column), second, shape, offset,
                                 scalars});
}

}  // namespace castor
