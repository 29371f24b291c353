// Checks, result sizes and allocation of the pooling family.
#include "core/ops/pool.h"

#include "core/ops/channels_last.h"
#include "core/ops/float_check.h"

namespace castor {
namespace {

void check_operand(const char* op, const char* what, const Tensor& x) {
  check_float(op, x);
  if (x.ndim() != 4) throw ShapeError(cat(op, ": expected ", what, " [n, c, h, w], got ", x));
}

/// The result's shape for windows of fixed size, after all checks.
Shape fixed_shape(const char* op, const Shape& shape, const PoolGeometry& geometry, PoolKind kind) {
  Shape result = shape;
  for (int i = 0; i < 2; ++i) {
    const std::int64_t kernel = geometry.kernel[i], stride = geometry.stride[i], padding = geometry.padding[i];
    const std::int64_t dilation = geometry.dilation[i];
    if (kernel < 1 || stride < 1 || dilation < 1 || padding < 0 || 2 * padding > kernel) {
      throw ShapeError(cat(
          op, ": expected kernel, stride and dilation of at least 1 and padding from 0 to half the kernel, got kernel ",
          kernel, ", stride ", stride, ", dilation ", dilation, ", padding ", padding));
    }
    if (kind == PoolKind::average && dilation != 1)
      throw ShapeError(cat(op, ": averages take no dilation, got ", dilation));
    const std::int64_t room = shape[2 + i] + 2 * padding - dilation * (kernel - 1) - 1;
    if (room < 0) {
      throw ShapeError(cat(op, ": windows reach over ", dilation * (kernel - 1) + 1,
                           " pixels, the padded image of shape ", shape, " has ", shape[2 + i] + 2 * padding,
                           "; use smaller windows or more padding"));
    }
    std::int64_t size = (geometry.ceil_mode ? room + stride - 1 : room) / stride + 1;
    if (geometry.ceil_mode && (size - 1) * stride >= shape[2 + i] + padding) --size;
    result[2 + i] = size;
  }
  return result;
}

Shape adaptive_shape(const char* op, const Shape& shape, const Shape& size) {
  if (size.ndim() != 2 || size[0] < 1 || size[1] < 1)
    throw ShapeError(cat(op, ": expected a result size {oh, ow} of at least 1 each, got ", size));
  if (shape[2] < 1 || shape[3] < 1) throw ShapeError(cat(op, ": the image of shape ", shape, " has no pixel to pool"));
  return {shape[0], shape[1], size[0], size[1]};
}

Tensor forward(const Tensor& x, const Shape& shape, const PoolWindows& windows, PoolKind kind, Tensor* indices) {
  const Tensor image = channels_last(x);
  Tensor y = empty_channels_last(shape, x.dtype(), x.device());
  if (indices != nullptr) *indices = empty_channels_last(shape, DType::i32, x.device());
  dispatch(x.device(), PoolArgs{image.view(), y.view(), indices != nullptr ? indices->view() : View{}, windows, kind});
  return y;
}

Tensor backward(const char* op, const Tensor& dy, const Tensor& indices, const Shape& shape, const Shape& result_shape,
                const PoolWindows& windows, PoolKind kind) {
  if (!(dy.shape() == result_shape)) throw ShapeError(cat(op, ": expected dy of shape ", result_shape, ", got ", dy));
  const bool is_max = kind == PoolKind::max;
  if (is_max && !(indices.shape() == result_shape))
    throw ShapeError(cat(op, ": expected indices of shape ", result_shape, ", got ", indices));
  if (is_max && indices.dtype() != DType::i32)
    throw DTypeError(cat(op, ": expected the i32 indices of the forward call, got ", indices));
  const Device device = common_device(op, {&dy, &indices});
  const Tensor gradient = channels_last(dy), positions = is_max ? channels_last(indices) : Tensor{};
  Tensor dx = empty_channels_last(shape, dy.dtype(), device);
  dispatch(device, PoolBackwardArgs{gradient.view(), view_or_absent(positions), dx.view(), windows, kind});
  return dx;
}

void check_shape(const char* op, const Shape& shape) {
  if (shape.ndim() != 4) throw ShapeError(cat(op, ": expected the shape [n, c, h, w] of x, got ", shape));
}

}  // namespace

Cost cost(const PoolArgs& args) {
  return {static_cast<double>(args.x.numel()),
          static_cast<double>(args.x.bytes() + args.y.bytes() + args.indices.bytes())};
}

Cost cost(const PoolBackwardArgs& args) {
  return {static_cast<double>(args.dx.numel()),
          static_cast<double>(args.dx.bytes() + args.dy.bytes() + args.indices.bytes())};
}

Tensor max_pool2d(const Tensor& x, const PoolGeometry& geometry, Tensor* indices) {
  check_operand("max_pool2d", "x", x);
  return forward(x, fixed_shape("max_pool2d", x.shape(), geometry, PoolKind::max), {geometry, false}, PoolKind::max,
                 indices);
}

Tensor avg_pool2d(const Tensor& x, const PoolGeometry& geometry) {
  check_operand("avg_pool2d", "x", x);
  return forward(x, fixed_shape("avg_pool2d", x.shape(), geometry, PoolKind::average), {geometry, false},
                 PoolKind::average, nullptr);
}

Tensor adaptive_max_pool2d(const Tensor& x, const Shape& size, Tensor* indices) {
  check_operand("adaptive_max_pool2d", "x", x);
  return forward(x, adaptive_shape("adaptive_max_pool2d", x.shape(), size), {{}, true}, PoolKind::max, indices);
}

Tensor adaptive_avg_pool2d(const Tensor& x, const Shape& size) {
  check_operand("adaptive_avg_pool2d", "x", x);
  return forward(x, adaptive_shape("adaptive_avg_pool2d", x.shape(), size), {{}, true}, PoolKind::average, nullptr);
}

Tensor max_pool2d_backward(const Tensor& dy, const Tensor& indices, const Shape& shape, const PoolGeometry& geometry) {
  constexpr const char* kOp = "max_pool2d_backward";
  check_operand(kOp, "dy", dy);
  check_shape(kOp, shape);
  return backward(kOp, dy, indices, shape, fixed_shape(kOp, shape, geometry, PoolKind::max), {geometry, false},
                  PoolKind::max);
}

Tensor avg_pool2d_backward(const Tensor& dy, const Shape& shape, const PoolGeometry& geometry) {
  constexpr const char* kOp = "avg_pool2d_backward";
  check_operand(kOp, "dy", dy);
  check_shape(kOp, shape);
  return backward(kOp, dy, {}, shape, fixed_shape(kOp, shape, geometry, PoolKind::average), {geometry, false},
                  PoolKind::average);
}

Tensor adaptive_max_pool2d_backward(const Tensor& dy, const Tensor& indices, const Shape& shape) {
  constexpr const char* kOp = "adaptive_max_pool2d_backward";
  check_operand(kOp, "dy", dy);
  check_shape(kOp, shape);
  return backward(kOp, dy, indices, shape, adaptive_shape(kOp, shape, {dy.size(2), dy.size(3)}), {{}, true},
                  PoolKind::max);
}

Tensor adaptive_avg_pool2d_backward(const Tensor& dy, const Shape& shape) {
  constexpr const char* kOp = "adaptive_avg_pool2d_backward";
  check_operand(kOp, "dy", dy);
  check_shape(kOp, shape);
  return backward(kOp, dy, {}, shape, adaptive_shape(kOp, shape, {dy.size(2), dy.size(3)}), {{}, true},
                  PoolKind::average);
}

}  // namespace castor
