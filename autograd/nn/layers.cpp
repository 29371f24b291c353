// Constructors that say how each parameter starts, and forwards of one call each.
#include "autograd/nn/layers.h"

#include "autograd/ops/index.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/random.h"
#include "autograd/random_state.h"

namespace castor::autograd {

Sequential::Sequential(std::vector<std::shared_ptr<Layer>> layers) {
  for (auto& layer : layers) push_back(std::move(layer));
}

void Sequential::push_back(std::shared_ptr<Layer> layer) {
  register_module(std::to_string(layers_.size()), layer);
  layers_.push_back(std::move(layer));
}

Variable Sequential::forward(const Variable& x) {
  const ForwardScope scope(*this);
  Variable y = x;
  for (const auto& layer : layers_) y = layer->forward(y);
  return y;
}

Variable Identity::forward(const Variable& x) {
  const ForwardScope scope(*this);
  return x;
}

Variable Flatten::forward(const Variable& x) {
  const ForwardScope scope(*this);
  std::int64_t features = 1;
  for (int axis = 1; axis < x.ndim(); ++axis) features *= x.size(axis);
  return reshape(x, {x.size(0), features});
}

Dropout::Dropout(double p) : p_(p) {
  if (!(p >= 0 && p < 1)) throw ConfigError(cat("Dropout: p must be in [0, 1), got ", p), "p");
}

Variable Dropout::forward(const Variable& x) {
  const ForwardScope scope(*this);
  if (!is_training() || p_ == 0) return x;
  return dropout(x, random_state().next(name_hash()), p_);
}

Linear::Linear(std::int64_t in_features, std::int64_t out_features, const LinearOptions& options)
    : is_fp8_(options.tensor.has_fp8_products) {
  const Init uniform = Init::fan_in_uniform(in_features);
  weight_ =
      register_parameter("weight", {out_features, in_features}, options.weight_init.value_or(uniform), options.tensor);
  const Init bias_init = options.bias_init.value_or(options.weight_init ? Init::zeros() : uniform);
  if (options.bias) bias_ = register_parameter("bias", {out_features}, bias_init, options.tensor);
}

Linear::Linear(const Variable& tied_weight) : weight_(tied_weight) { register_parameter("weight", tied_weight); }

Variable Linear::forward(const Variable& x) { return forward(x, Activation::none); }

Variable Linear::forward(const Variable& x, Activation activation) {
  const ForwardScope scope(*this);
  return is_fp8_ ? linear_fp8(x, weight_, bias_, activation) : linear(x, weight_, bias_, activation);
}

Embedding::Embedding(std::int64_t num_embeddings, std::int64_t embedding_dim, const Init& weight_init,
                     const TensorOptions& options)
    : weight_(register_parameter("weight", {num_embeddings, embedding_dim}, weight_init, options)) {}

Variable Embedding::forward(const Tensor& indices) {
  const ForwardScope scope(*this);
  return embedding(weight_, indices);
}

Variable Embedding::forward_range(std::int64_t start, std::int64_t count) {
  const ForwardScope scope(*this);
  return narrow(weight_, 0, start, count);
}

LayerNorm::LayerNorm(std::int64_t size, double eps, bool bias, const TensorOptions& options)
    : eps_(eps), weight_(register_parameter("weight", {size}, Init::ones(), options)) {
  if (bias) bias_ = register_parameter("bias", {size}, Init::zeros(), options);
}

Variable LayerNorm::forward(const Variable& x) {
  const ForwardScope scope(*this);
  return layer_norm(x, weight_, bias_, eps_);
}

NormedSum LayerNorm::forward_add(const Variable& x, const Variable& residual) {
  const ForwardScope scope(*this);
  return add_layer_norm(x, residual, weight_, bias_, eps_);
}

RMSNorm::RMSNorm(std::int64_t size, double eps, const TensorOptions& options)
    : eps_(eps), weight_(register_parameter("weight", {size}, Init::ones(), options)) {}

Variable RMSNorm::forward(const Variable& x) {
  const ForwardScope scope(*this);
  return rms_norm(x, weight_, eps_);
}

NormedSum RMSNorm::forward_add(const Variable& x, const Variable& residual) {
  const ForwardScope scope(*this);
  return add_rms_norm(x, residual, weight_, eps_);
}

}  // namespace castor::autograd
