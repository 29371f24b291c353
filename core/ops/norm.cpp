// Checks and allocation of the norms. Layer norm wants rows, batch and group norm one of two dense layouts; other
// strides are copied here.
#include "core/ops/norm.h"

#include "core/ops/cast.h"
#include "core/ops/elementwise.h"
#include "core/ops/float_check.h"
#include "core/ops/reduce_plan.h"

namespace castor {
namespace {

double sum_bytes(std::initializer_list<const View*> views) {
  double bytes = 0;
  for (const View* view : views) bytes += static_cast<double>(view->bytes());
  return bytes;
}

DType statistics_dtype(const Tensor& x) { return x.dtype() == DType::f64 ? DType::f64 : DType::f32; }

/// `vector` is absent or [size] of x's dtype, with unit stride.
Tensor checked_vector(const char* op, const char* what, const Tensor& vector, std::int64_t size, DType dtype) {
  if (!vector.defined()) return vector;
  if (!(vector.shape() == Shape{size})) throw ShapeError(cat(op, ": ", what, " must be [", size, "], got ", vector));
  if (vector.dtype() != dtype) throw DTypeError(cat(op, ": ", what, " must be ", dtype, ", got ", vector, "; cast it"));
  return contiguous(vector);
}

void check_like(const char* op, const char* what, const Tensor& tensor, const Tensor& x) {
  if (!tensor.defined()) return;
  if (!(tensor.shape() == x.shape()))
    throw ShapeError(cat(op, ": ", what, " must have the shape of x ", x, ", got ", tensor));
  if (tensor.dtype() != x.dtype())
    throw DTypeError(cat(op, ": ", what, " must have the dtype of x ", x, ", got ", tensor));
}

Tensor optional_contiguous(const Tensor& x) { return x.defined() ? contiguous(x) : x; }

Tensor empty_if(bool wanted, const Shape& shape, DType dtype, Device device) {
  return wanted ? Tensor::empty(shape, dtype, device) : Tensor{};
}

Tensor workspace_of(std::int64_t count, DType dtype, Device device) {
  if (count == 0) return {};
  const CategoryScope category(Category::workspace);
  return Tensor::empty({count}, dtype, device);
}

LayerNormed normalize_rows(const char* op, const Tensor& x_any, const Tensor& weight, const Tensor& bias, double eps,
                           const Tensor& residual, bool is_rms) {
  check_float(op, x_any);
  if (x_any.ndim() == 0 || x_any.shape().back() == 0)
    throw ShapeError(cat(op, ": expected [..., n] with n >= 1, got ", x_any));
  const Device device = common_device(op, {&x_any, &weight, &bias, &residual});
  check_like(op, "the residual", residual, x_any);
  const std::int64_t n = x_any.shape().back();
  const Tensor x = contiguous(x_any), other = optional_contiguous(residual);
  const Tensor w = checked_vector(op, "weight", weight, n, x.dtype()),
               b = checked_vector(op, "bias", bias, n, x.dtype());
  Shape rows = x.shape();
  rows.erase(x.ndim() - 1);
  LayerNormed result;
  result.y = Tensor::empty_like(x);
  if (other.defined()) result.sum = Tensor::empty_like(x);
  if (!is_rms) result.mean = Tensor::empty(rows, statistics_dtype(x), device);
  result.rstd = Tensor::empty(rows, statistics_dtype(x), device);
  dispatch(device,
           LayerNormArgs{x.view(), view_or_absent(other), view_or_absent(w), view_or_absent(b), result.y.view(),
                         view_or_absent(result.sum), view_or_absent(result.mean), result.rstd.view(), eps, is_rms});
  return result;
}

// Batch and group norm.

Shape channels_last_axes(int ndim) {
  Shape axes{0};
  for (int i = 2; i < ndim; ++i) axes.push_back(i);
  axes.push_back(1);
  return axes;
}

bool is_channels_last(const Tensor& x) { return x.permute(channels_last_axes(x.ndim())).is_contiguous(); }

/// x itself if it is row-major or dense channels-last, else a row-major copy.
Tensor dense(const Tensor& x) { return x.is_contiguous() || is_channels_last(x) ? x : clone(x); }

/// `tensor` with its elements in memory like x's (which is dense).
Tensor dense_like(const Tensor& tensor, const Tensor& x) {
  if (!tensor.defined()) return tensor;
  if (x.is_contiguous() ? tensor.is_contiguous() : is_channels_last(tensor)) return tensor;
  const Tensor copy = empty_like_strided(x);
  copy_into(tensor, copy);
  return copy;
}

void check_channels(const char* op, const Tensor& x) {
  check_float(op, x);
  if (x.ndim() < 2) throw ShapeError(cat(op, ": expected [N, C, ...], got ", x));
}

/// Partial results of a sum by channel, two numbers each; kernels of every device may use them.
std::int64_t channel_partials(const Tensor& x) {
  View y = x.view();
  for (int i = 0; i < y.ndim; ++i) {
    if (i != 1) y.size[i] = 1;
    y.stride[i] = i == 0 ? x.shape()[1] : 1;
  }
  return 2 * ReducePlan(x.view(), y, ~2u).partials();
}

Tensor checked_statistic(const char* op, const char* what, const Tensor& tensor, const Shape& shape, const Tensor& x) {
  if (!(tensor.shape() == shape)) throw ShapeError(cat(op, ": ", what, " must be ", shape, ", got ", tensor));
  if (tensor.dtype() != statistics_dtype(x))
    throw DTypeError(cat(op, ": ", what, " must be ", statistics_dtype(x), ", got ", tensor));
  return contiguous(tensor);
}

}  // namespace

Cost cost(const LayerNormArgs& a) {
  return {7 * static_cast<double>(a.x.numel()),
          sum_bytes({&a.x, &a.residual, &a.weight, &a.bias, &a.y, &a.sum, &a.mean, &a.rstd})};
}
Cost cost(const LayerNormBackwardArgs& a) {
  return {13 * static_cast<double>(a.x.numel()),
          sum_bytes({&a.x, &a.weight, &a.mean, &a.rstd, &a.dy, &a.dsum, &a.dx, &a.dweight, &a.dbias})};
}
Cost cost(const BatchNormArgs& a) {
  const double reads = a.is_training ? static_cast<double>(a.x.bytes()) : 0;
  return {(a.is_training ? 7.0 : 3.0) * static_cast<double>(a.x.numel()), reads + sum_bytes({&a.x, &a.residual, &a.y})};
}
Cost cost(const BatchNormBackwardArgs& a) {
  return {11 * static_cast<double>(a.x.numel()), 2 * sum_bytes({&a.x, &a.dy, &a.y}) + sum_bytes({&a.dx, &a.dresidual})};
}
Cost cost(const GroupNormArgs& a) { return {7 * static_cast<double>(a.x.numel()), sum_bytes({&a.x, &a.y})}; }
Cost cost(const GroupNormBackwardArgs& a) {
  return {11 * static_cast<double>(a.x.numel()), sum_bytes({&a.x, &a.dy, &a.dx})};
}

LayerNormed layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps, const Tensor& residual) {
  return normalize_rows("layer_norm", x, weight, bias, eps, residual, false);
}

LayerNormed rms_norm(const Tensor& x, const Tensor& weight, double eps, const Tensor& residual) {
  return normalize_rows("rms_norm", x, weight, {}, eps, residual, true);
}

NormGradients layer_norm_backward(const Tensor& x_any, const Tensor& weight, const Tensor& mean, const Tensor& rstd,
                                  const Tensor& dy_any, const Tensor& dsum_any, const NormNeeds& needs) {
  const char* op = "layer_norm_backward";
  check_float(op, x_any);
  const Device device = common_device(op, {&x_any, &weight, &mean, &rstd, &dy_any, &dsum_any});
  if (x_any.ndim() == 0 || x_any.shape().back() == 0)
    throw ShapeError(cat(op, ": expected [..., n] with n >= 1, got ", x_any));
  check_like(op, "the gradient", dy_any, x_any);
  check_like(op, "the sum's gradient", dsum_any, x_any);
  const std::int64_t n = x_any.shape().back(), rows = x_any.numel() / n;
  const Tensor x = contiguous(x_any), dy = contiguous(dy_any), dsum = optional_contiguous(dsum_any);
  const Tensor w = checked_vector(op, "weight", weight, n, x.dtype());
  const bool is_rms = !mean.defined(), wants_x = needs.x || needs.residual;
  Shape statistics = x.shape();
  statistics.erase(x.ndim() - 1);
  const Tensor scale = checked_statistic(op, "rstd", rstd, statistics, x);
  const Tensor center = is_rms ? mean : checked_statistic(op, "mean", mean, statistics, x);
  NormGradients result;
  result.x = empty_if(wants_x, x.shape(), x.dtype(), device);
  const auto parameter_gradient = [&](bool is_wanted, const Tensor& place) {
    return is_wanted && place.defined() ? place : empty_if(is_wanted, {n}, x.dtype(), device);
  };
  result.weight = parameter_gradient(needs.weight && weight.defined(), needs.weight_place);
  result.bias = parameter_gradient(needs.bias && !is_rms, needs.bias_place);
  const bool has_sums = result.weight.defined() || result.bias.defined();
  if (!wants_x && !has_sums) return result;
  const Tensor workspace = workspace_of(has_sums ? layer_norm_workspace(rows, n) : 0, statistics_dtype(x), device);
  dispatch(device, LayerNormBackwardArgs{x.view(), view_or_absent(w), view_or_absent(center), scale.view(), dy.view(),
                                         view_or_absent(dsum), view_or_absent(result.x), view_or_absent(result.weight),
                                         view_or_absent(result.bias), view_or_absent(workspace), is_rms});
  result.residual = result.x;
  return result;
}

BatchNormed batch_norm_training(const Tensor& x_any, const Tensor& weight, const Tensor& bias, double eps,
                                const Tensor& residual, bool has_relu) {
  const char* op = "batch_norm";
  check_channels(op, x_any);
  const Device device = common_device(op, {&x_any, &weight, &bias, &residual});
  check_like(op, "the residual", residual, x_any);
  const std::int64_t channels = x_any.shape()[1];
  if (channels > 0 && x_any.numel() / channels < 2) {
    throw ShapeError(cat(op, ": training needs two or more values a channel, got ", x_any,
                         "; use a larger batch, or evaluation mode"));
  }
  const Tensor x = dense(x_any), other = dense_like(residual, x);
  const Tensor w = checked_vector(op, "weight", weight, channels, x.dtype()),
               b = checked_vector(op, "bias", bias, channels, x.dtype());
  BatchNormed result;
  result.y = empty_like_strided(x);
  result.mean = Tensor::empty({channels}, statistics_dtype(x), device);
  result.rstd = Tensor::empty({channels}, statistics_dtype(x), device);
  result.variance = Tensor::empty({channels}, statistics_dtype(x), device);
  const Tensor workspace = workspace_of(channel_partials(x), DType::f64, device);
  dispatch(device, BatchNormArgs{x.view(), view_or_absent(w), view_or_absent(b), view_or_absent(other), result.y.view(),
                                 result.mean.view(), result.rstd.view(), result.variance.view(),
                                 view_or_absent(workspace), eps, true, has_relu});
  return result;
}

Tensor batch_norm_evaluation(const Tensor& x_any, const Tensor& weight, const Tensor& bias, const Tensor& running_mean,
                             const Tensor& running_variance, double eps, const Tensor& residual, bool has_relu) {
  const char* op = "batch_norm";
  check_channels(op, x_any);
  const Device device = common_device(op, {&x_any, &weight, &bias, &running_mean, &running_variance, &residual});
  check_like(op, "the residual", residual, x_any);
  const std::int64_t channels = x_any.shape()[1];
  const Tensor x = dense(x_any), other = dense_like(residual, x);
  const Tensor w = checked_vector(op, "weight", weight, channels, x.dtype()),
               b = checked_vector(op, "bias", bias, channels, x.dtype());
  const Tensor mean = checked_statistic(op, "the running mean", running_mean, {channels}, x);
  const Tensor variance = checked_statistic(op, "the running variance", running_variance, {channels}, x);
  Tensor y = empty_like_strided(x);
  dispatch(device, BatchNormArgs{x.view(), view_or_absent(w), view_or_absent(b), view_or_absent(other), y.view(),
                                 mean.view(), View{}, variance.view(), View{}, eps, false, has_relu});
  return y;
}

NormGradients batch_norm_backward(const BatchNormSaved& saved, const Tensor& dy_any, const NormNeeds& needs) {
  const char* op = "batch_norm_backward";
  check_channels(op, saved.x);
  const Device device =
      common_device(op, {&saved.x, &saved.weight, &saved.bias, &saved.mean, &saved.rstd, &saved.y, &dy_any});
  check_like(op, "the gradient", dy_any, saved.x);
  check_like(op, "the result", saved.y, saved.x);
  const std::int64_t channels = saved.x.shape()[1];
  const Tensor x = dense(saved.x), dy = dense_like(dy_any, x), y = dense_like(saved.y, x);
  const Tensor w = checked_vector(op, "weight", saved.weight, channels, x.dtype());
  const Tensor b = checked_vector(op, "bias", saved.bias, channels, x.dtype());
  const Tensor mean = checked_statistic(op, "the mean", saved.mean, {channels}, x);
  const Tensor rstd = checked_statistic(op, "rstd", saved.rstd, {channels}, x);
  NormGradients result;
  if (needs.x) result.x = empty_like_strided(x);
  if (needs.residual) result.residual = saved.has_relu ? empty_like_strided(x) : dy_any;
  result.weight = empty_if(needs.weight && w.defined(), {channels}, x.dtype(), device);
  result.bias = empty_if(needs.bias, {channels}, x.dtype(), device);
  const Tensor workspace = workspace_of(2 * channels + channel_partials(x), DType::f64, device);
  dispatch(device, BatchNormBackwardArgs{x.view(), view_or_absent(w), view_or_absent(b), mean.view(), rstd.view(),
                                         view_or_absent(y), dy.view(), view_or_absent(result.x),
                                         saved.has_relu ? view_or_absent(result.residual) : View{},
                                         view_or_absent(result.weight), view_or_absent(result.bias),
                                         view_or_absent(workspace), saved.is_training, saved.has_relu});
  return result;
}

GroupNormed group_norm(const Tensor& x_any, std::int64_t groups, const Tensor& weight, const Tensor& bias, double eps) {
  const char* op = "group_norm";
  check_channels(op, x_any);
  const Device device = common_device(op, {&x_any, &weight, &bias});
  const std::int64_t channels = x_any.shape()[1];
  if (groups < 1 || channels % groups != 0)
    throw ShapeError(cat(op, ": groups must divide the channels, got ", groups, " groups for ", x_any));
  const Tensor x = dense(x_any);
  const Tensor w = checked_vector(op, "weight", weight, channels, x.dtype()),
               b = checked_vector(op, "bias", bias, channels, x.dtype());
  GroupNormed result{empty_like_strided(x), Tensor::empty({x.shape()[0], groups}, statistics_dtype(x), device),
                     Tensor::empty({x.shape()[0], groups}, statistics_dtype(x), device)};
  dispatch(device, GroupNormArgs{x.view(), view_or_absent(w), view_or_absent(b), result.y.view(), result.mean.view(),
                                 result.rstd.view(), groups, eps});
  return result;
}

NormGradients group_norm_backward(const Tensor& x_any, std::int64_t groups, const Tensor& weight, const Tensor& mean,
                                  const Tensor& rstd, const Tensor& dy_any, const NormNeeds& needs) {
  const char* op = "group_norm_backward";
  check_channels(op, x_any);
  const Device device = common_device(op, {&x_any, &weight, &mean, &rstd, &dy_any});
  check_like(op, "the gradient", dy_any, x_any);
  const std::int64_t samples = x_any.shape()[0], channels = x_any.shape()[1];
  const Tensor x = dense(x_any), dy = dense_like(dy_any, x);
  const Tensor w = checked_vector(op, "weight", weight, channels, x.dtype());
  const Tensor center = checked_statistic(op, "the mean", mean, {samples, groups}, x);
  const Tensor scale = checked_statistic(op, "rstd", rstd, {samples, groups}, x);
  NormGradients result;
  if (needs.x) result.x = empty_like_strided(x);
  result.weight = empty_if(needs.weight && w.defined(), {channels}, x.dtype(), device);
  result.bias = empty_if(needs.bias, {channels}, x.dtype(), device);
  const Tensor workspace = workspace_of(2 * samples * (channels + groups), DType::f64, device);
  dispatch(device, GroupNormBackwardArgs{x.view(), view_or_absent(w), center.view(), scale.view(), dy.view(),
                                         view_or_absent(result.x), view_or_absent(result.weight),
                                         view_or_absent(result.bias), view_or_absent(workspace), groups});
  return result;
}

}  // namespace castor
