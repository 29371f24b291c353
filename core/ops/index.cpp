// Checks and allocation of the index family; joining and cutting are views and copies, so they have no kernels of their
// own.
#include "core/ops/index.h"

#include "core/ops/cast.h"
#include "core/ops/float_check.h"
#include "core/ops/workspace.h"

namespace castor {
namespace {

void check_ids(const char* op, const Tensor& ids) {
  if (ids.dtype() != DType::i64 && ids.dtype() != DType::i32)
    throw DTypeError(cat(op, ": expected ids of i64 or i32, got ", ids));
}

/// [outer, size, inner] with `axis` in the middle; a copy if strides do not allow a view with last stride 1.
Tensor around_axis(const Tensor& x, int axis) {
  Shape folded{1, x.shape()[axis], 1};
  for (int i = 0; i < x.ndim(); ++i) {
    if (i < axis) folded[0] *= x.shape()[i];
    if (i > axis) folded[2] *= x.shape()[i];
  }
  const Tensor result = reshape(x, folded);
  return result.strides()[2] == 1 || folded[2] == 1 ? result : clone(result);
}

void add_by_index(const Tensor& dy, const Tensor& ids, const Tensor& dx, std::int64_t skip, bool accumulate) {
  IndexAddArgs args{dy.view(), ids.view(), dx.view(), View{}, skip, accumulate};
  const Tensor workspace = workspace_for(dx.device(), args);
  args.workspace = view_or_absent(workspace);
  dispatch(dx.device(), args);
}

Tensor flat_ids(const Tensor& ids) { return reshape(ids, {ids.numel()}); }

void check_embedding_gradient(const char* op, const Tensor& dy, const Tensor& ids, std::int64_t columns) {
  check_ids(op, ids);
  check_float(op, dy);
  Shape wanted = ids.shape();
  wanted.push_back(columns);
  if (!(dy.shape() == wanted))
    throw ShapeError(cat(op, ": for ids ", ids, " expected a gradient of shape ", wanted, ", got ", dy));
}

void check_line_operands(const char* op, const Tensor& x, int axis, const Tensor& index) {
  check_ids(op, index);
  if (x.ndim() != index.ndim())
    throw ShapeError(cat(op, ": x and index must have as many axes, got x ", x, ", index ", index));
  for (int i = 0; i < x.ndim(); ++i) {
    if (i != axis && index.shape()[i] > x.shape()[i]) {
      throw ShapeError(cat(op, ": index ", index, " is larger than x ", x, " along axis ", i));
    }
  }
}

}  // namespace

Cost cost(const IndexSelectArgs& args) { return {0, static_cast<double>(2 * args.y.bytes() + args.ids.bytes())}; }
Cost cost(const IndexAddArgs& args) {
  return {static_cast<double>(args.dy.numel()),
          static_cast<double>(args.dy.bytes() + args.dx.bytes() * (args.accumulate ? 2 : 1) + args.ids.bytes())};
}
Cost cost(const GatherArgs& args) { return {0, static_cast<double>(2 * args.y.bytes() + args.index.bytes())}; }
Cost cost(const ScatterAddArgs& args) {
  return {static_cast<double>(args.source.numel()), static_cast<double>(3 * args.source.bytes() + args.index.bytes())};
}

Tensor index_select(const Tensor& x, int axis_index, const Tensor& ids) {
  constexpr const char* kOp = IndexSelectArgs::kName;
  const int axis = x.shape().axis(axis_index, kOp);
  check_ids(kOp, ids);
  if (ids.ndim() != 1) throw ShapeError(cat(kOp, ": expected ids with one axis, got ", ids));
  const Device device = common_device(kOp, {&x, &ids});
  Shape shape = x.shape();
  shape[axis] = ids.numel();
  Tensor y = Tensor::empty(shape, x.dtype(), device);
  const Tensor source = around_axis(x, axis);
  dispatch(device,
           IndexSelectArgs{source.view(), ids.view(), y.reshape({source.size(0), ids.numel(), source.size(2)}).view()});
  return y;
}

Tensor index_select_backward(const Tensor& dy, const Shape& shape, int axis_index, const Tensor& ids) {
  constexpr const char* kOp = "index_select_backward";
  const int axis = shape.axis(axis_index, kOp);
  check_ids(kOp, ids);
  check_float(kOp, dy);
  Shape wanted = shape;
  wanted[axis] = ids.numel();
  if (ids.ndim() != 1 || !(dy.shape() == wanted)) {
    throw ShapeError(cat(kOp, ": for ids ", ids, " expected a gradient of shape ", wanted, ", got ", dy));
  }
  common_device(kOp, {&dy, &ids});
  Tensor dx = Tensor::empty(shape, dy.dtype(), dy.device());
  add_by_index(around_axis(dy, axis), ids, around_axis(dx, axis), -1, false);
  return dx;
}

Tensor embedding(const Tensor& weight, const Tensor& ids) {
  constexpr const char* kOp = "embedding";
  if (weight.ndim() != 2) throw ShapeError(cat(kOp, ": expected a table [V,D], got ", weight));
  check_ids(kOp, ids);
  common_device(kOp, {&weight, &ids});
  Shape shape = ids.shape();
  shape.push_back(weight.size(1));
  return index_select(weight, 0, flat_ids(ids)).reshape(shape);
}

Tensor embedding_backward(const Tensor& dy, const Tensor& ids, std::int64_t vocabulary, std::int64_t skip) {
  constexpr const char* kOp = "embedding_backward";
  if (dy.ndim() == 0) throw ShapeError(cat(kOp, ": expected a gradient of shape ids + [D], got ", dy));
  const std::int64_t columns = dy.size(-1);
  check_embedding_gradient(kOp, dy, ids, columns);
  common_device(kOp, {&dy, &ids});
  Tensor gradient = Tensor::empty({vocabulary, columns}, dy.dtype(), dy.device());
  const Tensor rows = around_axis(reshape(dy, {ids.numel(), columns}), 0);
  add_by_index(rows, flat_ids(ids), gradient.unsqueeze(0), skip, false);
  return gradient;
}

void embedding_backward_add(const Tensor& dy, const Tensor& ids, const Tensor& gradient, std::int64_t skip) {
  constexpr const char* kOp = "embedding_backward";
  if (gradient.ndim() != 2 || (gradient.strides()[1] != 1 && gradient.size(1) != 1)) {
    throw ShapeError(cat(kOp, ": expected a gradient buffer [V,D] with adjacent columns, got ", gradient));
  }
  check_embedding_gradient(kOp, dy, ids, gradient.size(1));
  if (dy.dtype() != gradient.dtype())
    throw DTypeError(cat(kOp, ": gradient ", dy, " cannot be added to a buffer ", gradient));
  common_device(kOp, {&dy, &ids, &gradient});
  const Tensor rows = around_axis(reshape(dy, {ids.numel(), gradient.size(1)}), 0);
  add_by_index(rows, flat_ids(ids), gradient.unsqueeze(0), skip, true);
}

Tensor gather(const Tensor& x, int axis_index, const Tensor& index) {
  constexpr const char* kOp = GatherArgs::kName;
  const int axis = x.shape().axis(axis_index, kOp);
  check_line_operands(kOp, x, axis, index);
  const Device device = common_device(kOp, {&x, &index});
  Tensor y = Tensor::empty(index.shape(), x.dtype(), device);
  dispatch(device, GatherArgs{x.view(), index.view(), y.view(), axis});
  return y;
}

Tensor scatter_add(const Tensor& x, int axis_index, const Tensor& index, const Tensor& source) {
  constexpr const char* kOp = ScatterAddArgs::kName;
  const int axis = x.shape().axis(axis_index, kOp);
  check_line_operands(kOp, x, axis, index);
  check_float(kOp, x);
  if (x.dtype() != source.dtype())
    throw DTypeError(cat(kOp, ": x and source must have one dtype, got ", x, " and ", source));
  if (!(source.shape() == index.shape()))
    throw ShapeError(cat(kOp, ": source must have index's shape, got ", source, " and ", index));
  const Device device = common_device(kOp, {&x, &index, &source});
  const bool is_small = dtype_size(x.dtype()) == 2;
  const Tensor sum = is_small ? cast(x, DType::f32) : clone(x);
  const Tensor terms = is_small ? cast(source, DType::f32) : source;
  dispatch(device, ScatterAddArgs{sum.view(), index.view(), terms.view(), axis});
  return cast(sum, x.dtype());
}

Tensor gather_backward(const Tensor& dy, const Shape& shape, int axis_index, const Tensor& index) {
  constexpr const char* kOp = "gather_backward";
  check_float(kOp, dy);
  const int axis = shape.axis(axis_index, kOp);
  if (!(dy.shape() == index.shape()))
    throw ShapeError(cat(kOp, ": the gradient must have index's shape, got ", dy, " and ", index));
  const Device device = common_device(kOp, {&dy, &index});
  const DType sum_dtype = dy.dtype() == DType::f64 ? DType::f64 : DType::f32;
  const Tensor sum = Tensor::zeros(shape, sum_dtype, device);
  check_line_operands(kOp, sum, axis, index);
  dispatch(device, ScatterAddArgs{sum.view(), index.view(), cast(dy, sum_dtype).view(), axis});
  return cast(sum, dy.dtype());
}

Tensor concat(std::span<const Tensor> tensors, int axis_index) {
  constexpr const char* kOp = "concat";
  if (tensors.empty()) throw ShapeError(cat(kOp, ": expected at least one tensor"));
  const Tensor& first = tensors.front();
  const int axis = first.shape().axis(axis_index, kOp);
  Shape shape = first.shape();
  shape[axis] = 0;
  for (const Tensor& tensor : tensors) {
    common_device(kOp, {&first, &tensor});
    if (tensor.dtype() != first.dtype())
      throw DTypeError(cat(kOp, ": expected one dtype, got ", first, " and ", tensor));
    Shape expected = first.shape();
    if (tensor.ndim() == first.ndim()) expected[axis] = tensor.shape()[axis];
    if (!(tensor.shape() == expected)) {
      throw ShapeError(cat(kOp, ": shapes must agree but for axis ", axis, ", got ", first, " and ", tensor));
    }
    shape[axis] += tensor.shape()[axis];
  }
  Tensor result = Tensor::empty(shape, first.dtype(), first.device());
  std::int64_t start = 0;
  for (const Tensor& tensor : tensors) {
    const std::int64_t size = tensor.shape()[axis];
    copy_into(tensor, result.narrow(axis, start, size));
    start += size;
  }
  return result;
}

std::vector<Tensor> split(const Tensor& x, std::span<const std::int64_t> sizes, int axis_index) {
  const int axis = x.shape().axis(axis_index, "split");
  std::vector<Tensor> parts;
  parts.reserve(sizes.size());
  std::int64_t start = 0;
  for (const std::int64_t size : sizes) {
    if (size < 0 || start + size > x.shape()[axis]) break;
    parts.push_back(x.narrow(axis, start, size));
    start += size;
  }
  if (parts.size() != sizes.size() || start != x.shape()[axis]) {
    throw ShapeError(cat("split: the sizes must not be negative and must add up to axis ", axis, " of ", x,
                         "; they are ", Shape(sizes)));
  }
  return parts;
}

std::vector<Tensor> split(const Tensor& x, std::int64_t size, int axis_index) {
  const int axis = x.shape().axis(axis_index, "split");
  if (size < 1) throw ShapeError(cat("split: expected a size of at least 1, got ", size));
  std::vector<Tensor> parts;
  for (std::int64_t start = 0; start < x.shape()[axis]; start += size) {
    parts.push_back(x.narrow(axis, start, std::min(size, x.shape()[axis] - start)));
  }
  return parts;
}

Tensor pad(const Tensor& x, const Shape& before, const Shape& after, double value) {
  constexpr const char* kOp = "pad";
  if (before.ndim() != x.ndim() || after.ndim() != x.ndim()) {
    throw ShapeError(cat(kOp, ": expected a width for each axis of ", x, ", got before ", before, ", after ", after));
  }
  Shape shape = x.shape();
  for (int i = 0; i < x.ndim(); ++i) {
    if (before[i] < 0 || after[i] < 0)
      throw ShapeError(cat(kOp, ": widths must not be negative, got before ", before, ", after ", after));
    shape[i] += before[i] + after[i];
  }
  Tensor y = Tensor::empty(shape, x.dtype(), x.device());
  fill(y, value);
  Tensor inside = y;
  for (int i = 0; i < x.ndim(); ++i) inside = inside.narrow(i, before[i], x.shape()[i]);
  copy_into(x, inside);
  return y;
}

Tensor narrow_backward(const Tensor& dy, const Shape& shape, int axis_index, std::int64_t start) {
  const int axis = shape.axis(axis_index, "narrow_backward");
  Tensor dx = Tensor::zeros(shape, dy.dtype(), dy.device());
  if (dy.ndim() != shape.ndim()) throw ShapeError(cat("narrow_backward: gradient ", dy, " does not fit into ", shape));
  copy_into(dy, dx.narrow(axis, start, dy.shape()[axis]));
  return dx;
}

}  // namespace castor
