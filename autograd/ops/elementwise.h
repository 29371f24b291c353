// Differentiable elementwise ops. Shapes, dtypes and errors are those of core/ops/elementwise.h; gradients of broadcast
// operands are summed back to the operand's shape.
#pragma once

#include "autograd/variable.h"
#include "core/ops/pointwise.h"

namespace castor::autograd {

/// op(x); see castor::unary.
Variable unary(UnaryOp op, const Variable& x, double a = 0, double b = 0);

/// op(x, y) with broadcasting; see castor::binary.
Variable binary(BinaryOp op, const Variable& x, const Variable& y);

/// condition ? x : y with broadcasting; `condition` (bool) has no gradient.
Variable where(const Tensor& condition, const Variable& x, const Variable& y);

/// x in another float dtype; its gradient is cast back.
Variable cast(const Variable& x, DType dtype);

/// x as another shape: a view where strides allow, otherwise a copy. One size may be -1.
Variable reshape(const Variable& x, const Shape& shape);
/// Axes in another order (a view).
Variable permute(const Variable& x, const Shape& axes);
/// Two axes swapped (a view).
Variable transpose(const Variable& x, int axis_a, int axis_b);

inline Variable add(const Variable& x, const Variable& y) { return binary(BinaryOp::add, x, y); }
inline Variable sub(const Variable& x, const Variable& y) { return binary(BinaryOp::sub, x, y); }
inline Variable mul(const Variable& x, const Variable& y) { return binary(BinaryOp::mul, x, y); }
inline Variable div(const Variable& x, const Variable& y) { return binary(BinaryOp::div, x, y); }
inline Variable operator+(const Variable& x, const Variable& y) { return add(x, y); }
inline Variable operator-(const Variable& x, const Variable& y) { return sub(x, y); }
inline Variable operator*(const Variable& x, const Variable& y) { return mul(x, y); }
inline Variable operator/(const Variable& x, const Variable& y) { return div(x, y); }

/// a x + b.
inline Variable affine(const Variable& x, double a, double b) { return unary(UnaryOp::affine, x, a, b); }
inline Variable relu(const Variable& x) { return unary(UnaryOp::relu, x); }
inline Variable gelu(const Variable& x, bool is_tanh = false) {
  return unary(is_tanh ? UnaryOp::gelu_tanh : UnaryOp::gelu_erf, x);
}
inline Variable silu(const Variable& x) { return unary(UnaryOp::silu, x); }
inline Variable sigmoid(const Variable& x) { return unary(UnaryOp::sigmoid, x); }
inline Variable tanh(const Variable& x) { return unary(UnaryOp::tanh, x); }
inline Variable exp(const Variable& x) { return unary(UnaryOp::exp, x); }
inline Variable log(const Variable& x) { return unary(UnaryOp::log, x); }
inline Variable sqrt(const Variable& x) { return unary(UnaryOp::sqrt, x); }

/// dy summed over the axes along which `shape` was broadcast to dy's shape; dy itself when nothing was.
Tensor sum_to(const Tensor& dy, const Shape& shape);

}  // namespace castor::autograd
