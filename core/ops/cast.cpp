// Contracts of the copies.
#include "core/ops/cast.h"

#include <vector>

namespace castor {

Cost cost(const FillArgs& args) { return {0, static_cast<double>(args.y.bytes())}; }
Cost cost(const CastArgs& args) { return {0, static_cast<double>(args.x.bytes() + args.y.bytes())}; }

void copy_into(const Tensor& x, const Tensor& y) {
  if (!(x.shape() == y.shape())) throw ShapeError(cat("copy: shapes differ: from ", x, " to ", y));
  dispatch(common_device("copy", {&x, &y}), CastArgs{x.view(), y.view()});
}

Tensor cast(const Tensor& x, DType dtype) {
  if (x.dtype() == dtype) return x;
  Tensor y = Tensor::empty(x.shape(), dtype, x.device());
  copy_into(x, y);
  return y;
}

Tensor clone(const Tensor& x) {
  Tensor y = Tensor::empty_like(x);
  copy_into(x, y);
  return y;
}

Tensor contiguous(const Tensor& x) { return x.is_contiguous() ? x : clone(x); }

void copy_across(const Tensor& x, const Tensor& y) {
  if (!(x.shape() == y.shape()) || !x.is_contiguous() || !y.is_contiguous()) {
    throw ShapeError(cat("copy_across: expected two row-major tensors of one shape, got ", x, " with strides ",
                         x.strides(), " and ", y, " with strides ", y.strides(), "; make them contiguous"));
  }
  if (x.dtype() != y.dtype())
    throw DTypeError(cat("copy_across: expected two tensors of one dtype, got ", x, " and ", y, "; cast one of them"));
  if (x.numel() == 0) return;
  if (x.device().is_meta() || y.device().is_meta()) {
    const View from = x.view();  // whoever keeps them elsewhere is asked for them, as by a real copy
    y.view();
    if (innermost_observer == nullptr || x.device() == y.device()) return;
    const OpCall transfer{"transfer", x.device(), {0, static_cast<double>(from.bytes())}};
    notify(transfer, false);
    return notify(transfer, true);
  }
  if (x.device() == y.device()) return copy_into(x, y);
  if (x.device().is_cpu()) return y.copy_from_host(x.view().data, x.view().bytes());
  if (y.device().is_cpu()) return x.copy_to_host(y.view().data, y.view().bytes());
  copy_into(to_device(x, y.device()), y);
}

Tensor to_device(const Tensor& x, Device device) {
  if (x.device() == device) return x;
  if (x.device().is_meta() && !device.is_meta()) {
    throw DeviceError(cat("to_device: ", x, " is on a meta device and has no values for ", device,
                          "; run on cpu or cuda to have them"));
  }
  const Tensor source = contiguous(x);
  Tensor y = Tensor::empty(x.shape(), x.dtype(), device);
  if (device.is_meta()) return y;
  if (x.device().is_cpu() || device.is_cpu()) {
    copy_across(source, y);
    return y;
  }
  std::vector<char> bytes(static_cast<std::size_t>(x.numel()) * dtype_size(x.dtype()));
  source.copy_to_host(bytes.data(), bytes.size());
  y.copy_from_host(bytes.data(), bytes.size());
  return y;
}

Tensor reshape(const Tensor& x, const Shape& shape) {
  if (x.is_contiguous()) return x.reshape(shape);
  try {
    return x.reshape(shape);
  } catch (const ShapeError&) {
    return clone(x).reshape(shape);
  }
}

void fill(const Tensor& x, double value) {
  if (x.numel() > 0) dispatch(x.device(), FillArgs{x.view(), value});
}

Tensor full(const Shape& shape, double value, DType dtype, Device device) {
  Tensor result = Tensor::empty(shape, dtype, device);
  fill(result, value);
  return result;
}

}  // namespace castor
