// Checks and allocation around the 8-bit product.
#include "core/ops/fp8_matmul.h"

#include "core/ops/cast.h"
#include "core/ops/workspace.h"

namespace castor {
namespace {

void check_operand(const char* name, const Fp8Operand& operand) {
  const Tensor& x = operand.values;
  if (!x.is_contiguous() && !x.transpose(0, 1).is_contiguous()) {
    throw ShapeError(cat("fp8_matmul: expected ", name, " dense by rows or by columns, got ", x, " with strides ",
                         x.strides(), "; make it contiguous"));
  }
  check_fp8_scale("fp8_matmul", operand.scale);
}

}  // namespace

Cost cost(const Fp8MatmulArgs& args) {
  return {2 * static_cast<double>(args.c.numel()) * static_cast<double>(args.a.size[1]),
          static_cast<double>(args.a.bytes() + args.b.bytes() + args.bias.bytes() + args.c.bytes())};
}

Tensor fp8_matmul(const Fp8Operand& a, const Fp8Operand& b, DType dtype, const Tensor& bias) {
  visit_training_float(dtype, "fp8_matmul", [](auto) {});
  if ((a.values.dtype() != DType::f8e4m3 && a.values.dtype() != DType::f8e5m2) || b.values.dtype() != DType::f8e4m3 ||
      (bias.defined() && bias.dtype() != dtype)) {
    throw DTypeError(cat("fp8_matmul: expected a of f8e4m3 or f8e5m2, b of f8e4m3 and a bias of the result's ", dtype,
                         ", got ", a.values, ", ", b.values, " and ", bias));
  }
  if (a.values.ndim() != 2 || b.values.ndim() != 2 || a.values.size(1) != b.values.size(1) ||
      (bias.defined() && !(bias.shape() == Shape{b.values.size(0)}))) {
    throw ShapeError(
        cat("fp8_matmul: expected a [m, k], b [n, k] and a bias [n], got ", a.values, ", ", b.values, " and ", bias));
  }
  check_operand("a", a);
  check_operand("b", b);
  const Device device = common_device("fp8_matmul", {&a.values, &a.scale, &b.values, &b.scale, &bias});
  const Tensor c = Tensor::empty({a.values.size(0), b.values.size(0)}, dtype, device);
  const Tensor dense_bias = bias.defined() ? contiguous(bias) : bias;
  Fp8MatmulArgs args{
      a.values.view(), a.scale.view(), b.values.view(), b.scale.view(), view_or_absent(dense_bias), c.view(), {}};
  const Tensor workspace = workspace_for(device, args);
  args.workspace = view_or_absent(workspace);
  dispatch(device, args);
  return c;
}

}  // namespace castor
