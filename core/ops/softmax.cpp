// Checks and allocation of softmax and cross entropy.
#include "core/ops/softmax.h"

#include "core/ops/cast.h"
#include "core/ops/float_check.h"

namespace castor {
namespace {

DType loss_dtype(DType logits) { return logits == DType::f64 ? DType::f64 : DType::f32; }

/// In f16 the division by the number of rows waits for backward, where the loss scale comes with it.
bool divides_in_forward(DType logits, const CrossEntropyOptions& options) {
  return options.reduction == Reduction::mean && logits != DType::f16;
}

Tensor softmax_any(const char* op, const Tensor& x_any, bool is_log) {
  check_float(op, x_any);
  if (x_any.ndim() == 0) throw ShapeError(cat(op, ": expected [..., n], got ", x_any));
  const Tensor x = contiguous(x_any);
  Tensor y = Tensor::empty_like(x);
  dispatch(x.device(), SoftmaxArgs{x.view(), y.view(), is_log});
  return y;
}

Tensor backward_any(const char* op, const Tensor& y_any, const Tensor& dy_any, bool is_log) {
  check_float(op, y_any);
  if (!(y_any.shape() == dy_any.shape()) || y_any.ndim() == 0)
    throw ShapeError(cat(op, ": expected y and dy [..., n] of one shape, got ", y_any, " and ", dy_any));
  if (y_any.dtype() != dy_any.dtype())
    throw DTypeError(cat(op, ": expected y and dy of one dtype, got ", y_any, " and ", dy_any));
  const Device device = common_device(op, {&y_any, &dy_any});
  const Tensor y = contiguous(y_any), dy = contiguous(dy_any);
  Tensor dx = Tensor::empty_like(y);
  dispatch(device, SoftmaxBackwardArgs{y.view(), dy.view(), dx.view(), is_log});
  return dx;
}

}  // namespace

Cost cost(const SoftmaxArgs& args) {
  return {5 * static_cast<double>(args.x.numel()), static_cast<double>(args.x.bytes() + args.y.bytes())};
}
Cost cost(const SoftmaxBackwardArgs& args) {
  return {4 * static_cast<double>(args.y.numel()),
          static_cast<double>(args.y.bytes() + args.dy.bytes() + args.dx.bytes())};
}
Cost cost(const CrossEntropyArgs& args) {
  return {6 * static_cast<double>(args.logits.numel()),
          static_cast<double>(args.logits.bytes() + args.targets.bytes() + args.gradient.bytes())};
}
Cost cost(const CrossEntropyScaleArgs& args) {
  return {static_cast<double>(args.gradient.numel()), 2 * static_cast<double>(args.gradient.bytes())};
}

Tensor softmax(const Tensor& x) { return softmax_any("softmax", x, false); }
Tensor log_softmax(const Tensor& x) { return softmax_any("log_softmax", x, true); }
Tensor softmax_backward(const Tensor& y, const Tensor& dy) { return backward_any("softmax_backward", y, dy, false); }
Tensor log_softmax_backward(const Tensor& y, const Tensor& dy) {
  return backward_any("log_softmax_backward", y, dy, true);
}

CrossEntropy cross_entropy(const Tensor& logits_any, const Tensor& targets_any, const CrossEntropyOptions& options,
                           bool wants_gradient) {
  const char* op = "cross_entropy";
  check_float(op, logits_any);
  if (targets_any.dtype() != DType::i64 && targets_any.dtype() != DType::i32) {
    throw DTypeError(cat(op, ": targets must be i64 or i32, got ", targets_any));
  }
  const Device device = common_device(op, {&logits_any, &targets_any});
  if (logits_any.ndim() != 2 || targets_any.ndim() != 1 || targets_any.shape()[0] != logits_any.shape()[0]) {
    throw ShapeError(cat(op, ": expected logits [rows, classes] and targets [rows], got ", logits_any, " and ",
                         targets_any, "; reshape leading axes into one"));
  }
  if (logits_any.shape()[1] == 0 && logits_any.shape()[0] > 0)
    throw ShapeError(cat(op, ": no classes in ", logits_any));
  if (!(options.label_smoothing >= 0 && options.label_smoothing <= 1)) {
    throw ConfigError(cat(op, ": label_smoothing must be in [0, 1], got ", options.label_smoothing), "label_smoothing");
  }
  const Tensor logits = contiguous(logits_any), targets = contiguous(targets_any);
  const std::int64_t rows = logits.shape()[0];
  CrossEntropy result;
  result.loss =
      Tensor::empty(options.reduction == Reduction::none ? Shape{rows} : Shape{}, loss_dtype(logits.dtype()), device);
  if (wants_gradient) result.gradient = Tensor::empty_like(logits);
  result.counted = Tensor::empty({}, DType::f64, device);
  const Tensor workspace = [&] {
    const CategoryScope category(Category::workspace);
    return Tensor::empty({rows}, DType::f64, device);
  }();
  dispatch(device, CrossEntropyArgs{logits.view(), targets.view(), result.loss.view(), view_or_absent(result.gradient),
                                    result.counted.view(), workspace.view(), options,
                                    divides_in_forward(logits.dtype(), options)});
  return result;
}

Tensor cross_entropy_backward(const CrossEntropy& forward, const Tensor& dloss, const CrossEntropyOptions& options) {
  const char* op = "cross_entropy_backward";
  if (!forward.gradient.defined()) throw InternalError(cat(op, ": forward was not asked for the gradient"));
  if (!(dloss.shape() == forward.loss.shape()))
    throw ShapeError(cat(op, ": expected the gradient of the loss ", forward.loss, ", got ", dloss));
  if (dloss.dtype() != forward.loss.dtype())
    throw DTypeError(cat(op, ": expected the gradient of the loss ", forward.loss, ", got ", dloss));
  const Device device = common_device(op, {&forward.gradient, &dloss});
  const bool divides = options.reduction == Reduction::mean && !divides_in_forward(forward.gradient.dtype(), options);
  const Tensor factors = contiguous(dloss);
  dispatch(device,
           CrossEntropyScaleArgs{forward.gradient.view(), factors.view(), divides ? forward.counted.view() : View{}});
  return forward.gradient;
}

}  // namespace castor
