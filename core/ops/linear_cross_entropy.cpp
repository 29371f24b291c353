// The loop over stretches of rows: products and cross entropy are other families' ops, so this has no kernels of its
// own and a step on meta sees the same memory.
#include "core/ops/linear_cross_entropy.h"

#include <algorithm>

#include "core/ops/cast.h"

namespace castor {
namespace {

void check(const char* op, const Tensor& x, const Tensor& weight, const Tensor& targets,
           const CrossEntropyOptions& options) {
  if (targets.dtype() != DType::i64 && targets.dtype() != DType::i32)
    throw DTypeError(cat(op, ": targets must be i64 or i32, got ", targets));
  if (x.ndim() != 2 || weight.ndim() != 2 || targets.ndim() != 1 || x.size(1) != weight.size(1) ||
      targets.size(0) != x.size(0)) {
    throw ShapeError(cat(op, ": expected x [rows, k], weight [classes, k] and targets [rows], got x ", x, ", weight ",
                         weight, " and targets ", targets));
  }
  if (weight.size(0) == 0 && x.size(0) > 0) throw ShapeError(cat(op, ": no classes in ", weight));
  if (!(options.label_smoothing >= 0 && options.label_smoothing <= 1)) {
    throw ConfigError(cat(op, ": label_smoothing must be in [0, 1], got ", options.label_smoothing), "label_smoothing");
  }
  if (options.reduction == Reduction::none) {
    throw ConfigError(cat(op, ": the rows' losses have gradients of their own, which a sum over stretches of rows ",
                          "cannot take; use linear and cross_entropy"),
                      "reduction");
  }
}

}  // namespace

LinearCrossEntropy linear_cross_entropy(const Tensor& x, const Tensor& weight, const Tensor& targets_any,
                                        const CrossEntropyOptions& options, LinearCrossEntropyNeeds needs) {
  const char* op = "linear_cross_entropy";
  const Device device = common_device(op, {&x, &weight, &targets_any});
  check(op, x, weight, targets_any, options);
  const Tensor targets = contiguous(targets_any);
  const std::int64_t rows = x.size(0), classes = weight.size(0), most = std::min(rows, kLinearCrossEntropyRows);
  const bool is_f64 = x.dtype() == DType::f64, is_f16 = x.dtype() == DType::f16;
  const DType wide = is_f64 ? DType::f64 : DType::f32;
  LinearCrossEntropy result;
  result.dtype = x.dtype();
  result.loss = Tensor::empty({}, wide, device);
  result.counted = Tensor::empty({}, DType::f64, device);
  if (needs.x) result.x = Tensor::empty(x.shape(), x.dtype(), device);
  // In f16 the gradient is not yet divided by the number of rows: its sum needs f32's range.
  if (needs.weight) result.weight = Tensor::empty(weight.shape(), most < rows || is_f16 ? wide : x.dtype(), device);
  const Tensor losses = [&] {
    const CategoryScope category(Category::workspace);
    return Tensor::empty({rows}, DType::f64, device);
  }();
  const Tensor stretch = Tensor::empty({most, classes}, x.dtype(), device);
  std::int64_t first = 0;
  do {
    const std::int64_t count = std::min(rows - first, most);
    const Tensor logits = stretch.narrow(0, 0, count), part = x.narrow(0, first, count);
    matmul_into(part, weight.transpose(0, 1), logits);
    dispatch(device, CrossEntropyArgs{logits.view(), targets.view(), result.loss.view(),
                                      needs.x || needs.weight ? logits.view() : View{}, result.counted.view(),
                                      losses.view(), options, options.reduction == Reduction::mean && !is_f16, first});
    if (needs.x) matmul_into(logits, weight, result.x.narrow(0, first, count));
    if (needs.weight) matmul_into(logits.transpose(0, 1), part, result.weight, first > 0);
    first += count;
  } while (first < rows);
  return result;
}

LinearGradients linear_cross_entropy_backward(const LinearCrossEntropy& forward, const Tensor& dloss,
                                              const CrossEntropyOptions& options) {
  const char* op = "linear_cross_entropy_backward";
  if (!(dloss.shape() == forward.loss.shape()))
    throw ShapeError(cat(op, ": expected the gradient of the loss ", forward.loss, ", got ", dloss));
  if (dloss.dtype() != forward.loss.dtype())
    throw DTypeError(cat(op, ": expected the gradient of the loss ", forward.loss, ", got ", dloss));
  const Device device = common_device(op, {&forward.loss, &dloss});
  const bool divides = options.reduction == Reduction::mean && forward.dtype == DType::f16;
  for (const Tensor* gradient : {&forward.x, &forward.weight}) {
    if (!gradient->defined()) continue;
    dispatch(device, CrossEntropyScaleArgs{gradient->view(), dloss.view(), divides ? forward.counted.view() : View{}});
  }
  return {forward.x, forward.weight.defined() ? cast(forward.weight, forward.dtype) : Tensor{}, {}};
}

}  // namespace castor
