// Forward calls and gradients of the reductions. The gradient of a sum is a view with stride 0: it has no bytes of its
// own.
#include "autograd/ops/reduce.h"

#include "autograd/graph.h"
#include "core/ops/cast.h"
#include "core/ops/elementwise.h"

namespace castor::autograd {
namespace {

/// x's sizes with 1 on the reduced axes.
Shape with_ones(const Shape& shape, unsigned mask) {
  Shape result = shape;
  for (int i = 0; i < shape.ndim(); ++i) {
    if ((mask >> i & 1u) != 0) result[i] = 1;
  }
  return result;
}

double reduced_count(const Shape& shape, unsigned mask) {
  double count = 1;
  for (int i = 0; i < shape.ndim(); ++i) {
    if ((mask >> i & 1u) != 0) count *= static_cast<double>(shape[i]);
  }
  return count;
}

bool chooses(ReduceOp op) { return op == ReduceOp::max || op == ReduceOp::min || op == ReduceOp::norm_inf; }

/// How many elements attain each result.
Tensor attained(ReduceOp op, const Tensor& x, const Tensor& y, const Shape& axes) {
  const Tensor size = op == ReduceOp::norm_inf ? castor::unary(UnaryOp::abs, x) : x;
  return castor::sum(castor::cast(castor::compare(CompareOp::eq, size, y), x.dtype()), axes, true);
}

}  // namespace

Variable reduce(ReduceOp op, const Variable& x, const Shape& axes, bool keepdim) {
  if (op == ReduceOp::variance) return variance(x, axes, 0, keepdim);
  const Tensor y = castor::reduce(op, x.data(), axes, keepdim);
  const unsigned mask = axis_mask(axes, x.ndim(), "reduce");
  const Shape shape = x.shape(), ones = with_ones(shape, mask);
  const double factor = op == ReduceOp::mean ? 1 / reduced_count(shape, mask) : 1;
  const bool is_linear = op == ReduceOp::sum || op == ReduceOp::mean;
  const Tensor saved_x = is_linear ? Tensor{} : x.data(), saved_y = is_linear ? Tensor{} : y;
  return record("reduce", y, {x}, [=](BackwardContext& context) -> std::vector<Tensor> {
    Tensor dy = castor::reshape(context.gradients[0], ones);
    if (is_linear) {
      if (op == ReduceOp::mean) dy = scale(dy, factor);
      return {dy.expand(shape)};
    }
    const Tensor result = castor::reshape(saved_y, ones);
    if (chooses(op)) dy = castor::div(dy, attained(op, saved_x, result, axes));
    return {castor::reduce_backward(op, saved_x, result, dy)};
  });
}

Variable norm(const Variable& x, double p, const Shape& axes, bool keepdim) {
  return reduce(norm_op(p), x, axes, keepdim);
}

Variable variance(const Variable& x, const Shape& axes, double correction, bool keepdim) {
  const Moments both = castor::moments(x.data(), axes, correction, keepdim);
  const unsigned mask = axis_mask(axes, x.ndim(), "variance");
  const Shape ones = with_ones(x.shape(), mask);
  const double factor = 2 / (reduced_count(x.shape(), mask) - correction);
  const Tensor saved = x.data(), mean = both.mean;
  return record("variance", both.variance, {x}, [=](BackwardContext& context) -> std::vector<Tensor> {
    const Tensor dy = castor::reshape(context.gradients[0], ones);
    return {castor::reduce_backward(ReduceOp::variance, saved, mean.reshape(ones), dy, factor)};
  });
}

}  // namespace castor::autograd
