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
  return {static_cast<double>(args.x.numel()), static_cast<double>(args.x.bytes() + args.y.bytes())};
}
Cost cost(const Fp8ExpandArgs& args) {
  return {static_cast<double>(args.x.numel()), static_cast<double>(args.x.bytes() + args.y.bytes())};
}

Fp8Tensor fp8_quantise(const Tensor& x, DType format) {
  if (!is_fp8(format)) throw DTypeError(cat("fp8_quantise: expected the format f8e4m3 or f8e5m2, got ", format));
  visit_training_float(x.dtype(), "fp8_quantise", [](auto) {});
  const Tensor source = contiguous(x);
  Fp8Tensor result{Tensor::empty(x.shape(), format, x.device()), Tensor::empty({}, DType::f32, x.device())};
  dispatch(x.device(), Fp8ScaleArgs{source.view(), result.scale.view(), format});
  dispatch(x.device(), Fp8RoundArgs{source.view(), result.scale.view(), result.values.view()});
  return result;
}

Tensor fp8_expand(const Fp8Tensor& x, DType dtype) {
  if (!is_fp8(x.values.dtype())) throw DTypeError(cat("fp8_expand: expected f8e4m3 or f8e5m2, got ", x.values));
  visit_training_float(dtype, "fp8_expand", [](auto) {});
  Tensor y = Tensor::empty(x.values.shape(), dtype, x.values.device());
  dispatch(x.values.device(), Fp8ExpandArgs{x.values.view(), x.scale.view(), y.view()});
  return y;
}

}  // namespace castor
