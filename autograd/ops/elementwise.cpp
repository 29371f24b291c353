// Forward calls and gradients of the elementwise family: the pattern every family follows.
#include "autograd/ops/elementwise.h"

#include "autograd/graph.h"
#include "core/ops/cast.h"
#include "core/ops/elementwise.h"
#include "core/ops/reduce.h"

namespace castor::autograd {

Tensor sum_to(const Tensor& dy, const Shape& shape) {
  if (dy.shape() == shape) return dy;
  const int shift = dy.ndim() - shape.ndim();
  Shape axes;
  for (int i = 0; i < dy.ndim(); ++i) {
    if (i < shift || (shape[i - shift] == 1 && dy.shape()[i] != 1)) axes.push_back(i);
  }
  return castor::sum(dy, axes, true).reshape(shape);
}

Variable unary(UnaryOp op, const Variable& x, double a, double b) {
  Tensor y = castor::unary(op, x.data(), a, b);
  const bool by_output = slope_uses_output_only(op);
  Tensor saved = by_output ? y : x.data();
  return record("unary", y, {x}, [=](BackwardContext& context) -> std::vector<Tensor> {
    return {castor::unary_backward(op, by_output ? Tensor{} : saved, by_output ? saved : Tensor{}, context.gradients[0],
                                   a, b)};
  });
}

Variable binary(BinaryOp op, const Variable& x, const Variable& y) {
  Tensor z = castor::binary(op, x.data(), y.data());
  const bool is_linear = op == BinaryOp::add || op == BinaryOp::sub;
  // Sums need the shapes only; saving the operands would keep their bytes alive.
  Tensor saved_x = is_linear ? Tensor{} : x.data(), saved_y = is_linear ? Tensor{} : y.data();
  Tensor saved_z = op == BinaryOp::pow ? z : Tensor{};
  const Shape shape_x = x.shape(), shape_y = y.shape();
  return record("binary", z, {x, y}, [=](BackwardContext& context) -> std::vector<Tensor> {
    const Tensor& dz = context.gradients[0];
    const bool needs_x = context.needs[0], needs_y = context.needs[1];
    Tensor dx, dy;
    switch (op) {
      case BinaryOp::add:
        dx = dz;
        dy = dz;
        break;
      case BinaryOp::sub:
        dx = dz;
        if (needs_y) dy = scale(dz, -1);
        break;
      case BinaryOp::mul:
        if (needs_x) dx = castor::mul(dz, saved_y);
        if (needs_y) dy = castor::mul(dz, saved_x);
        break;
      case BinaryOp::div:
        if (needs_x) dx = castor::div(dz, saved_y);
        if (needs_y) dy = scale(castor::div(castor::mul(dz, saved_x), castor::mul(saved_y, saved_y)), -1);
        break;
      case BinaryOp::pow:
        if (needs_x)
          dx = castor::mul(dz, castor::mul(saved_y, castor::binary(BinaryOp::pow, saved_x,
                                                                   castor::unary(UnaryOp::affine, saved_y, 1, -1))));
        if (needs_y) dy = castor::mul(dz, castor::mul(saved_z, castor::unary(UnaryOp::log, saved_x)));
        break;
      case BinaryOp::maximum:
      case BinaryOp::minimum: {
        // Ties give the whole gradient to x.
        const Tensor takes_x =
            castor::compare(op == BinaryOp::maximum ? CompareOp::ge : CompareOp::le, saved_x, saved_y);
        const Tensor zero = full({}, 0, dz.dtype(), dz.device());
        if (needs_x) dx = castor::where(takes_x, dz, zero);
        if (needs_y) dy = castor::where(takes_x, zero, dz);
        break;
      }
    }
    return {needs_x ? sum_to(dx, shape_x) : Tensor{}, needs_y ? sum_to(dy, shape_y) : Tensor{}};
  });
}

Variable where(const Tensor& condition, const Variable& x, const Variable& y) {
  const Shape shape_x = x.shape(), shape_y = y.shape();
  return record("where", castor::where(condition, x.data(), y.data()), {x, y},
                [=](BackwardContext& context) -> std::vector<Tensor> {
                  const Tensor& dz = context.gradients[0];
                  const Tensor zero = full({}, 0, dz.dtype(), dz.device());
                  return {context.needs[0] ? sum_to(castor::where(condition, dz, zero), shape_x) : Tensor{},
                          context.needs[1] ? sum_to(castor::where(condition, zero, dz), shape_y) : Tensor{}};
                });
}

Variable cast(const Variable& x, DType dtype) {
  if (x.dtype() == dtype) return x;
  const DType from = x.dtype();
  return record("cast", castor::cast(x.data(), dtype), {x}, [=](BackwardContext& context) -> std::vector<Tensor> {
    return {castor::cast(context.gradients[0], from)};
  });
}

Variable reshape(const Variable& x, const Shape& shape) {
  const Shape from = x.shape();
  return record("reshape", castor::reshape(x.data(), shape), {x}, [=](BackwardContext& context) -> std::vector<Tensor> {
    return {castor::reshape(context.gradients[0], from)};
  });
}

Variable permute(const Variable& x, const Shape& axes) {
  Shape inverse = axes;
  for (int i = 0; i < axes.ndim(); ++i) inverse[x.shape().axis(static_cast<int>(axes[i]), "permute")] = i;
  return record("permute", x.data().permute(axes), {x}, [=](BackwardContext& context) -> std::vector<Tensor> {
    return {context.gradients[0].permute(inverse)};
  });
}

Variable transpose(const Variable& x, int axis_a, int axis_b) {
  return record("transpose", x.data().transpose(axis_a, axis_b), {x},
                [=](BackwardContext& context) -> std::vector<Tensor> {
                  return {context.gradients[0].transpose(axis_a, axis_b)};
                });
}

}  // namespace castor::autograd
