// Checks and allocation around gated linear units.
#include "core/ops/gated.h"

#include "core/ops/cast.h"
#include "core/ops/float_check.h"
#include "core/ops/workspace.h"

namespace castor {
namespace {

/// The shape of the result. Throws what a call with these operands is refused with.
Shape checked_result_shape(const char* op, const Tensor& packed, Activation activation) {
  if (activation == Activation::none) throw InternalError(cat(op, ": expected an activation"));
  if (packed.ndim() < 1 || packed.shape().back() % 2 != 0) {
    throw ShapeError(cat(op, ": expected an even last size, gate and up side by side, got ", packed));
  }
  check_float(op, packed);
  Shape shape = packed.shape();
  shape[shape.ndim() - 1] /= 2;
  return shape;
}

/// A place for x's scale where one is asked for and there is one; `wanted` receives it.
Tensor scale_for(const Tensor& x, Tensor* wanted) {
  if (wanted == nullptr) return {};
  *wanted = x.dtype() == DType::f64 || x.numel() == 0 ? Tensor{} : Tensor::empty({2}, DType::f32, x.device());
  return *wanted;
}

/// All axes but the last as one.
View rows_of(const Tensor& x, std::int64_t n) { return x.reshape({n == 0 ? 0 : x.numel() / n, n}).view(); }

}  // namespace

Cost cost(const GatedArgs& args) {
  return {2.0 * static_cast<double>(args.y.numel()), static_cast<double>(args.packed.bytes() + args.y.bytes())};
}

Cost cost(const GatedBackwardArgs& args) {
  return {6.0 * static_cast<double>(args.dy.numel()),
          static_cast<double>(args.dy.bytes() + args.packed.bytes() + args.dpacked.bytes() + args.y.bytes())};
}

Tensor gated(const Tensor& packed, Activation activation, Tensor* scale) {
  const Shape shape = checked_result_shape(GatedArgs::kName, packed, activation);
  const Tensor x = contiguous(packed), y = Tensor::empty(shape, packed.dtype(), packed.device());
  const Tensor found = scale_for(y, scale);
  if (y.numel() == 0) return y;
  dispatch(packed.device(),
           GatedArgs{rows_of(x, 2 * shape.back()), rows_of(y, shape.back()), activation, view_or_absent(found)});
  return y;
}

Tensor gated_backward(const Tensor& dy, const Tensor& packed, Activation activation,
                      const GatedBackwardWanted& wanted) {
  constexpr const char* kOp = GatedBackwardArgs::kName;
  const Shape shape = checked_result_shape(kOp, packed, activation);
  if (!(dy.shape() == shape)) throw ShapeError(cat(kOp, ": expected dy like the result of ", packed, ", got ", dy));
  if (dy.dtype() != packed.dtype()) throw DTypeError(cat(kOp, ": expected dy of ", packed.dtype(), ", got ", dy));
  const Device device = common_device(kOp, {&dy, &packed});
  const Tensor x = contiguous(packed), gradient = contiguous(dy), dx = Tensor::empty_like(x);
  const Tensor y = wanted.value != nullptr ? Tensor::empty(shape, packed.dtype(), device) : Tensor{};
  const Tensor scale = scale_for(dx, wanted.scale);
  if (dy.numel() != 0) {
    const std::int64_t n = shape.back();
    dispatch(device, GatedBackwardArgs{rows_of(gradient, n), rows_of(x, 2 * n), rows_of(dx, 2 * n), activation,
                                       y.defined() ? rows_of(y, n) : View{}, view_or_absent(scale)});
  }
  if (wanted.value != nullptr) *wanted.value = y;
  return dx;
}

}  // namespace castor
