// Checks and allocation of the reductions.
#include "core/ops/reduce.h"

#include <cmath>

#include "core/ops/elementwise.h"
#include "core/ops/float_check.h"
#include "core/ops/reduce_plan.h"

namespace castor {
namespace {

const char* op_name(ReduceOp op) {
  constexpr const char* kNames[] = {"sum", "mean", "max", "min", "norm", "norm", "norm", "logsumexp", "variance"};
  return kNames[static_cast<int>(op)];
}

struct Reduced {
  Tensor y, mean;
};

Reduced reduce_with(ReduceOp op, const Tensor& x, const Shape& axes, bool keepdim, double correction, bool wants_mean) {
  check_float(op_name(op), x);
  const unsigned mask = axis_mask(axes, x.ndim(), op_name(op));
  Shape with_ones = x.shape(), without;
  std::int64_t count = 1;
  for (int i = 0; i < x.ndim(); ++i) {
    if ((mask >> i & 1u) != 0) {
      with_ones[i] = 1;
      count *= x.shape()[i];
    } else {
      without.push_back(x.shape()[i]);
    }
  }
  if (count == 0 && with_ones.numel() > 0 && (op == ReduceOp::max || op == ReduceOp::min)) {
    throw ShapeError(cat(op_name(op), ": no elements to choose from: ", x, " over axes ", axes));
  }
  Reduced result;
  result.y = Tensor::empty(with_ones, x.dtype(), x.device());
  if (wants_mean) result.mean = Tensor::empty(with_ones, x.dtype() == DType::f64 ? DType::f64 : DType::f32, x.device());
  const std::int64_t doubles = reduce_workspace(x.view(), op, mask);
  Tensor workspace;
  if (doubles > 0) {
    const CategoryScope category(Category::workspace);
    workspace = Tensor::empty({doubles}, DType::f64, x.device());
  }
  dispatch(x.device(), ReduceArgs{x.view(), result.y.view(), view_or_absent(result.mean), view_or_absent(workspace), op,
                                  mask, correction});
  if (!keepdim) {
    result.y = result.y.reshape(without);
    if (wants_mean) result.mean = result.mean.reshape(without);
  }
  return result;
}

}  // namespace

Cost cost(const ReduceArgs& args) {
  const double per_element = args.op == ReduceOp::logsumexp ? 3 : args.op == ReduceOp::variance ? 4 : 1;
  return {per_element * static_cast<double>(args.x.numel()),
          static_cast<double>(args.x.bytes() + args.y.bytes() + args.mean.bytes() + 2 * args.workspace.bytes())};
}
Cost cost(const ReduceBackwardArgs& args) {
  return {2 * static_cast<double>(args.x.numel()),
          static_cast<double>(args.x.bytes() + args.y.bytes() + args.dy.bytes() + args.dx.bytes())};
}
Cost cost(const ArgmaxArgs& args) {
  return {static_cast<double>(args.x.numel()), static_cast<double>(args.x.bytes() + args.index.bytes())};
}

unsigned axis_mask(const Shape& axes, int ndim, const char* op) {
  if (axes.empty()) return (1u << ndim) - 1u;
  unsigned mask = 0;
  for (const std::int64_t axis : axes) {
    if (axis < -ndim || axis >= ndim)
      throw ShapeError(cat(op, ": axis ", axis, " of axes ", axes, " is outside a tensor of ", ndim, " axes"));
    const unsigned bit = 1u << (axis < 0 ? axis + ndim : axis);
    if ((mask & bit) != 0) throw ShapeError(cat(op, ": axes ", axes, " name an axis twice"));
    mask |= bit;
  }
  return mask;
}

std::int64_t reduce_workspace(const View& x, ReduceOp op, unsigned axes) {
  View y = x;
  std::int64_t step = 1;
  for (int i = x.ndim - 1; i >= 0; --i) {
    y.size[i] = (axes >> i & 1u) != 0 ? 1 : x.size[i];
    y.stride[i] = step;
    step *= std::max<std::int64_t>(y.size[i], 1);
  }
  return ReducePlan(x, y, axes).partials() * (op == ReduceOp::variance || op == ReduceOp::logsumexp ? 2 : 1);
}

Tensor reduce(ReduceOp op, const Tensor& x, const Shape& axes, bool keepdim) {
  return reduce_with(op, x, axes, keepdim, 0, false).y;
}

ReduceOp norm_op(double p) {
  if (p == 1) return ReduceOp::norm1;
  if (p == 2) return ReduceOp::norm2;
  if (p == HUGE_VAL) return ReduceOp::norm_inf;
  throw ConfigError(cat("norm: p must be 1, 2 or infinity, got ", p), "p");
}

Tensor norm(const Tensor& x, double p, const Shape& axes, bool keepdim) { return reduce(norm_op(p), x, axes, keepdim); }

Moments moments(const Tensor& x, const Shape& axes, double correction, bool keepdim) {
  Reduced result = reduce_with(ReduceOp::variance, x, axes, keepdim, correction, true);
  return {std::move(result.y), std::move(result.mean)};
}

Tensor argmax(const Tensor& x, int axis, bool keepdim) {
  if ((is_floating(x.dtype()) && dtype_size(x.dtype()) == 1) || x.dtype() == DType::boolean || x.dtype() == DType::u8) {
    throw DTypeError(cat("argmax: expected f32, bf16, f16, f64, i64 or i32, got ", x));
  }
  const int at = x.shape().axis(axis, "argmax");
  Shape shape = x.shape();
  shape[at] = 1;
  if (x.shape()[at] == 0 && shape.numel() > 0)
    throw ShapeError(cat("argmax: axis ", axis, " of ", x, " has no elements"));
  Tensor index = Tensor::empty(shape, DType::i64, x.device());
  dispatch(x.device(), ArgmaxArgs{x.view(), index.view(), at});
  if (keepdim) return index;
  shape.erase(at);
  return index.reshape(shape);
}

Tensor reduce_backward(ReduceOp op, const Tensor& x, const Tensor& y, const Tensor& dy, double factor) {
  check_float("reduce_backward", x);
  if (dy.dtype() != x.dtype())
    throw DTypeError(cat("reduce_backward: the gradient must have x's dtype, got ", dy, " for ", x));
  const DType wanted = op != ReduceOp::variance ? x.dtype() : x.dtype() == DType::f64 ? DType::f64 : DType::f32;
  if (y.dtype() != wanted)
    throw DTypeError(cat("reduce_backward: expected ", wanted, " for the result or mean, got ", y));
  const Device device = common_device("reduce_backward", {&x, &y, &dy});
  Tensor dx = empty_like_strided(x);
  dispatch(device, ReduceBackwardArgs{x.view(), y.expand(x.shape()).view(), dy.expand(x.shape()).view(), dx.view(), op,
                                      factor});
  return dx;
}

}  // namespace castor
