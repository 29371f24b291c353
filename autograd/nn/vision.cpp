// Constructors, forwards of one call each, and how batch norm posts and applies what it saw.
#include "autograd/nn/vision.h"

#include "autograd/ops/conv.h"
#include "autograd/ops/norm.h"
#include "autograd/ops/pool.h"
#include "core/ops/cast.h"
#include "core/ops/elementwise.h"

namespace castor::autograd {
namespace {

PoolGeometry pool_geometry(Pair kernel, const PoolOptions& options) {
  const Pair stride = options.stride.value_or(kernel);
  return {.kernel = {kernel.h, kernel.w},
          .stride = {stride.h, stride.w},
          .padding = {options.padding.h, options.padding.w},
          .dilation = {options.dilation.h, options.dilation.w},
          .ceil_mode = options.ceil_mode,
          .count_include_pad = options.count_include_pad};
}

TensorOptions batch_norm_options(TensorOptions options) {
  options.dtype = options.batch_norm_dtype.value_or(options.dtype);
  return options;
}

}  // namespace

Conv2d::Conv2d(std::int64_t in_channels, std::int64_t out_channels, Pair kernel, const ConvOptions& options)
    : geometry_{.stride = {options.stride.h, options.stride.w},
                .padding = {options.padding.h, options.padding.w},
                .dilation = {options.dilation.h, options.dilation.w},
                .groups = options.groups} {
  if (options.groups < 1 || in_channels % options.groups != 0 || out_channels % options.groups != 0) {
    throw ConfigError(cat("Conv2d: groups must divide both channel counts, got ", options.groups, " for ", in_channels,
                          " and ", out_channels),
                      "groups");
  }
  const std::int64_t group_channels = in_channels / options.groups;
  const Init uniform = Init::fan_in_uniform(group_channels * kernel.h * kernel.w);
  weight_ = register_parameter("weight", {out_channels, group_channels, kernel.h, kernel.w},
                               options.weight_init.value_or(uniform), options.tensor);
  const Init bias_init = options.weight_init ? Init::zeros() : uniform;
  if (options.bias) bias_ = register_parameter("bias", {out_channels}, bias_init, options.tensor);
}

Variable Conv2d::forward(const Variable& x) { return forward(x, Activation::none); }

Variable Conv2d::forward(const Variable& x, Activation activation) {
  const ForwardScope scope(*this);
  return conv2d(x, weight_, bias_, geometry_, activation);
}

BatchNorm2d::BatchNorm2d(std::int64_t num_features, double eps, double momentum, const TensorOptions& options)
    : eps_(eps),
      momentum_(momentum),
      weight_(register_parameter("weight", {num_features}, Init::ones(), batch_norm_options(options))),
      bias_(register_parameter("bias", {num_features}, Init::zeros(), batch_norm_options(options))),
      running_mean_(register_buffer("running_mean", {num_features}, Init::zeros(), {DType::f32, options.device})),
      running_var_(register_buffer("running_var", {num_features}, Init::ones(), {DType::f32, options.device})),
      num_batches_tracked_(register_buffer("num_batches_tracked", {}, Init::zeros(), {DType::i64, options.device})) {}

Variable BatchNorm2d::forward(const Variable& x) { return normalise(x, {}, false); }

Variable BatchNorm2d::forward_relu(const Variable& x, const Variable& residual) { return normalise(x, residual, true); }

Variable BatchNorm2d::normalise(const Variable& x, const Variable& residual, bool relu) {
  const ForwardScope scope(*this);
  if (x.dtype() == weight_.dtype()) return normalise_as_is(x, residual, relu);
  const Variable wide = residual.defined() ? cast(residual, weight_.dtype()) : Variable{};
  return cast(normalise_as_is(cast(x, weight_.dtype()), wide, relu), x.dtype());
}

Variable BatchNorm2d::normalise_as_is(const Variable& x, const Variable& residual, bool relu) {
  if (!is_training())
    return batch_norm_evaluation(x, weight_, bias_, running_mean_.data(), running_var_.data(), eps_, residual, relu);
  BatchNormed result = batch_norm_training(x, weight_, bias_, eps_, residual, relu);
  post_update({this, this, {std::move(result.mean), std::move(result.variance)}});
  return result.y;
}

void BatchNorm2d::apply_update(const std::vector<Tensor>& statistics) {
  const Tensor* buffers[] = {&running_mean_.data(), &running_var_.data()};
  for (std::size_t i = 0; i < 2; ++i) {
    unary_inplace(UnaryOp::affine, *buffers[i], 1 - momentum_, 0);
    binary_inplace(BinaryOp::add, *buffers[i], scale(statistics[i], momentum_));
  }
  const Tensor& count = num_batches_tracked_.data();
  binary_inplace(BinaryOp::add, count, full({}, 1, DType::i64, count.device()));
}

GroupNorm::GroupNorm(std::int64_t num_groups, std::int64_t num_channels, double eps, const TensorOptions& options)
    : num_groups_(num_groups), eps_(eps) {
  if (num_groups < 1 || num_channels % num_groups != 0) {
    throw ConfigError(cat("GroupNorm: num_groups must divide num_channels, got ", num_groups, " and ", num_channels),
                      "num_groups");
  }
  weight_ = register_parameter("weight", {num_channels}, Init::ones(), options);
  bias_ = register_parameter("bias", {num_channels}, Init::zeros(), options);
}

Variable GroupNorm::forward(const Variable& x) {
  const ForwardScope scope(*this);
  return group_norm(x, num_groups_, weight_, bias_, eps_);
}

MaxPool2d::MaxPool2d(Pair kernel, const PoolOptions& options) : geometry_(pool_geometry(kernel, options)) {}
Variable MaxPool2d::forward(const Variable& x) {
  const ForwardScope scope(*this);
  return max_pool2d(x, geometry_);
}

AvgPool2d::AvgPool2d(Pair kernel, const PoolOptions& options) : geometry_(pool_geometry(kernel, options)) {}
Variable AvgPool2d::forward(const Variable& x) {
  const ForwardScope scope(*this);
  return avg_pool2d(x, geometry_);
}

Variable AdaptiveAvgPool2d::forward(const Variable& x) {
  const ForwardScope scope(*this);
  return adaptive_avg_pool2d(x, size_);
}

Variable AdaptiveMaxPool2d::forward(const Variable& x) {
  const ForwardScope scope(*this);
  return adaptive_max_pool2d(x, size_);
}

}  // namespace castor::autograd
