// Contracts of the 8-bit conversions.
#include "core/ops/fp8.h"

#include "core/ops/cast.h"

namespace castor {
namespace {

bool is_fp8(DType dtype) { return dtype == DType::f8e4m3 || dtype == DType::f8e5m2; }

}  // namespace

Cost cost(const Fp8ScaleArgs& args) {
  return {static_cast<double>(args.x.numel()), static_cast<double>(args.x.bytes())};
}
Cost cost(const Fp8RoundArgs& args) {
  return {static_cast<double>(args.x.numel()),
          static_cast<double>(args.x.bytes() + args.y.bytes() + args.transposed.bytes())};
}
Cost cost(const Fp8ExpandArgs& args) {
  return {static_cast<double>(args.x.numel()), static_cast<double>(args.x.bytes() + args.y.bytes())};
}

void check_fp8_scale(const char* op, const Tensor& scale) {
  const auto text = [&](const auto&... strides) {
    return cat(op, ": expected a scale of two neighbouring f32, got ", scale, strides...,
               "; take the one of fp8_quantise");
  };
  if (!scale.defined() || scale.dtype() != DType::f32) throw DTypeError(text());
  if (!(scale.shape() == Shape{2}) || !scale.is_contiguous()) throw ShapeError(text(" with strides ", scale.strides()));
}

Fp8Tensor fp8_quantise(const Tensor& x, DType format, Fp8Orders orders, const Tensor& scale) {
  if (!is_fp8(format)) throw DTypeError(cat("fp8_quantise: expected the format f8e4m3 or f8e5m2, got ", format));
  visit_training_float(x.dtype(), "fp8_quantise", [](auto) {});
  if (orders.transposed && x.ndim() == 0)
    throw ShapeError(cat("fp8_quantise: expected at least one axis to transpose, got ", x));
  if (scale.defined()) check_fp8_scale("fp8_quantise", scale);
  const Device device = common_device("fp8_quantise", {&x, &scale});
  const Tensor source = contiguous(x);
  const std::int64_t n = x.ndim() == 0 ? 1 : x.shape().back(),
                     rows = x.ndim() == 0 ? 1 : Shape(std::span(x.shape().begin(), x.shape().end() - 1)).numel();
  const bool is_view = orders.transposed && kernel_type(device) == DeviceType::cpu;
  Fp8Tensor result;
  result.scale = scale;
  if (!scale.defined()) {
    result.scale = Tensor::empty({2}, DType::f32, device);
    dispatch(device, Fp8ScaleArgs{source.view(), result.scale.view(), format});
  }
  if (orders.values || is_view) result.values = Tensor::empty(x.shape(), format, device);
  if (orders.transposed && !is_view) result.transposed = Tensor::empty({n, rows}, format, device);
  const auto as_rows = [&](const Tensor& whole) {
    return whole.defined() ? castor::reshape(whole, {rows, n}).view() : View{};
  };
  dispatch(device, Fp8RoundArgs{as_rows(source), result.scale.view(), as_rows(result.values),
                                view_or_absent(result.transposed), scale.defined()});
  if (is_view) result.transposed = castor::reshape(result.values, {rows, n}).transpose(0, 1);
  return result;
}

Tensor fp8_expand(const Fp8Tensor& x, DType dtype) {
  if (!is_fp8(x.values.dtype())) throw DTypeError(cat("fp8_expand: expected f8e4m3 or f8e5m2, got ", x.values));
  visit_training_float(dtype, "fp8_expand", [](auto) {});
  check_fp8_scale("fp8_expand", x.scale);
  const Device device = common_device("fp8_expand", {&x.values, &x.scale});
  const Tensor values = contiguous(x.values);
  Tensor y = Tensor::empty(values.shape(), dtype, device);
  dispatch(device, Fp8ExpandArgs{values.view(), x.scale.view(), y.view()});
  return y;
}

}  // namespace castor
