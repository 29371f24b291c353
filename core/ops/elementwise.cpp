// Checks, broadcasting and allocation of the elementwise family.
#include "core/ops/elementwise.h"

#include <algorithm>

#include "core/ops/float_check.h"

namespace castor {
namespace {

Cost streamed(std::initializer_list<const View*> views, double flops_each) {
  Cost total;
  for (const View* view : views) total.bytes += static_cast<double>(view->bytes());
  total.flops = flops_each * static_cast<double>((*(views.end() - 1))->numel());
  return total;
}

void check_same_dtype(const char* op, const Tensor& x, const Tensor& y) {
  if (x.dtype() != y.dtype())
    throw DTypeError(cat(op, ": expected operands of one dtype, got ", x, " and ", y, "; cast one of them"));
}

}  // namespace

Cost cost(const UnaryArgs& args) { return streamed({&args.x, &args.y}, 1); }
Cost cost(const UnaryBackwardArgs& args) { return streamed({&args.x, &args.y, &args.dy, &args.dx}, 2); }
Cost cost(const BinaryArgs& args) { return streamed({&args.x, &args.y, &args.z}, 1); }
Cost cost(const CompareArgs& args) { return streamed({&args.x, &args.y, &args.z}, 1); }
Cost cost(const WhereArgs& args) { return streamed({&args.condition, &args.x, &args.y, &args.z}, 1); }

Tensor empty_like_strided(const Tensor& like) {
  if (like.is_contiguous()) return Tensor::empty_like(like);
  // Axes by falling stride; sizes of 1 and broadcast axes go where they stand.
  int order[kMaxDims];
  for (int i = 0; i < like.ndim(); ++i) order[i] = i;
  std::stable_sort(order, order + like.ndim(), [&](int i, int j) { return like.strides()[i] > like.strides()[j]; });
  Shape strides = like.strides();
  std::int64_t step = 1;
  for (int i = like.ndim() - 1; i >= 0; --i) {
    strides[order[i]] = step;
    step *= std::max<std::int64_t>(like.shape()[order[i]], 1);
  }
  return Tensor::empty_strided(like.shape(), strides, like.dtype(), like.device());
}

Tensor unary(UnaryOp op, const Tensor& x, double a, double b) {
  check_float("unary", x);
  Tensor y = empty_like_strided(x);
  dispatch(x.device(), UnaryArgs{x.view(), y.view(), op, a, b});
  return y;
}

void unary_inplace(UnaryOp op, const Tensor& x, double a, double b) {
  check_float("unary", x);
  dispatch(x.device(), UnaryArgs{x.view(), x.view(), op, a, b});
}

Tensor unary_backward(UnaryOp op, const Tensor& x, const Tensor& y, const Tensor& dy, double a, double b) {
  const Tensor& saved = slope_uses_output_only(op) ? y : x;
  if (!saved.defined()) throw InternalError("unary_backward: the tensor the slope needs is undefined");
  check_float("unary_backward", saved);
  check_same_dtype("unary_backward", saved, dy);
  if (!(saved.shape() == dy.shape()))
    throw ShapeError(cat("unary_backward: shapes differ: saved ", saved, ", gradient ", dy));
  const Device device = common_device("unary_backward", {&saved, &dy});
  Tensor dx = empty_like_strided(saved);
  const bool by_output = slope_uses_output_only(op);
  dispatch(device, UnaryBackwardArgs{by_output ? View{} : x.view(), by_output ? y.view() : View{}, dy.view(), dx.view(),
                                     op, a, b});
  return dx;
}

Tensor binary(BinaryOp op, const Tensor& x, const Tensor& y) {
  check_same_dtype("binary", x, y);
  const Device device = common_device("binary", {&x, &y});
  const Shape shape = broadcast_shapes(x.shape(), y.shape(), "binary");
  const Tensor& like = x.shape() == shape ? x : y;
  Tensor z = like.shape() == shape ? empty_like_strided(like) : Tensor::empty(shape, x.dtype(), device);
  dispatch(device, BinaryArgs{x.expand(shape).view(), y.expand(shape).view(), z.view(), op});
  return z;
}

void binary_inplace(BinaryOp op, const Tensor& x, const Tensor& y) {
  check_same_dtype("binary", x, y);
  dispatch(common_device("binary", {&x, &y}), BinaryArgs{x.view(), y.expand(x.shape()).view(), x.view(), op});
}

Tensor compare(CompareOp op, const Tensor& x, const Tensor& y) {
  check_same_dtype("compare", x, y);
  const Device device = common_device("compare", {&x, &y});
  const Shape shape = broadcast_shapes(x.shape(), y.shape(), "compare");
  Tensor z = Tensor::empty(shape, DType::boolean, device);
  dispatch(device, CompareArgs{x.expand(shape).view(), y.expand(shape).view(), z.view(), op});
  return z;
}

Tensor where(const Tensor& condition, const Tensor& x, const Tensor& y) {
  check_same_dtype("where", x, y);
  if (condition.dtype() != DType::boolean) throw DTypeError(cat("where: the condition must be bool, got ", condition));
  const Device device = common_device("where", {&condition, &x, &y});
  const Shape shape = broadcast_shapes(broadcast_shapes(x.shape(), y.shape(), "where"), condition.shape(), "where");
  Tensor z = Tensor::empty(shape, x.dtype(), device);
  dispatch(device, WhereArgs{condition.expand(shape).view(), x.expand(shape).view(), y.expand(shape).view(), z.view()});
  return z;
}

}  // namespace castor
