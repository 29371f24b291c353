// How the classifiers are put together. Delicate: ReLUs ride on the op before them (linear, convolution, batch norm),
// which is the same function in fewer passes over memory.
#include "samples/fashion_mnist/model.h"

namespace castor::samples {

using namespace autograd;

namespace {

Variable images_of(const Tensor& images) { return Variable(images); }

ConvOptions convolution(std::int64_t stride, std::int64_t padding, bool bias, const TensorOptions& options) {
  return {.stride = stride, .padding = padding, .bias = bias, .tensor = options};
}

}  // namespace

std::map<std::string, Variable> ImageClassifier::loss(const Batch& batch) {
  return {{"loss", criterion_.forward(forward(batch.inputs), batch.targets)}};
}

MlpClassifier::MlpClassifier(const Config& config, const TensorOptions& options)
    : fc1_(784, config.width, {.tensor = options}),
      fc2_(config.width, config.width, {.tensor = options}),
      fc3_(config.width, config.num_classes, {.tensor = options}),
      dropout1_(config.dropout),
      dropout2_(config.dropout) {
  register_module("fc1", fc1_);
  register_module("dropout1", dropout1_);
  register_module("fc2", fc2_);
  register_module("dropout2", dropout2_);
  register_module("fc3", fc3_);
}

Variable MlpClassifier::forward(const Tensor& images) {
  const ForwardScope scope(*this);
  const Variable x = reshape(images_of(images), {images.size(0), 784});
  const Variable first = dropout1_.forward(fc1_.forward(x, Activation::relu));
  const Variable second = dropout2_.forward(fc2_.forward(first, Activation::relu));
  return fc3_.forward(second);
}

LeNet::LeNet(const Config& config, const TensorOptions& options)
    : conv1_(1, config.width, 5, convolution(1, 2, true, options)),
      conv2_(config.width, 2 * config.width, 5, convolution(1, 2, true, options)),
      pool_(2),
      fc1_(2 * config.width * 49, 128, {.tensor = options}),
      fc2_(128, config.num_classes, {.tensor = options}),
      dropout_(config.dropout) {
  register_module("conv1", conv1_);
  register_module("conv2", conv2_);
  register_module("pool", pool_);
  register_module("fc1", fc1_);
  register_module("dropout", dropout_);
  register_module("fc2", fc2_);
}

Variable LeNet::forward(const Tensor& images) {
  const ForwardScope scope(*this);
  Variable x = pool_.forward(conv1_.forward(images_of(images), Activation::relu));
  x = pool_.forward(conv2_.forward(x, Activation::relu));
  x = reshape(x, {x.size(0), x.size(1) * x.size(2) * x.size(3)});
  return fc2_.forward(dropout_.forward(fc1_.forward(x, Activation::relu)));
}

BasicBlock::BasicBlock(std::int64_t in_channels, std::int64_t out_channels, std::int64_t stride,
                       const TensorOptions& options)
    : conv1_(in_channels, out_channels, 3, convolution(stride, 1, false, options)),
      bn1_(out_channels, 1e-5, 0.1, options),
      conv2_(out_channels, out_channels, 3, convolution(1, 1, false, options)),
      bn2_(out_channels, 1e-5, 0.1, options) {
  register_module("conv1", conv1_);
  register_module("bn1", bn1_);
  register_module("conv2", conv2_);
  register_module("bn2", bn2_);
  if (stride == 1 && in_channels == out_channels) return;
  downsample_ = std::make_shared<Sequential>();
  downsample_->emplace<Conv2d>(in_channels, out_channels, 1, convolution(stride, 0, false, options));
  downsample_->emplace<BatchNorm2d>(out_channels, 1e-5, 0.1, options);
  register_module("downsample", downsample_);
}

Variable BasicBlock::forward(const Variable& x) {
  const ForwardScope scope(*this);
  const Variable shortcut = downsample_ != nullptr ? downsample_->forward(x) : x;
  return bn2_.forward_relu(conv2_.forward(bn1_.forward_relu(conv1_.forward(x))), shortcut);
}

ResNet::ResNet(const Config& config, const TensorOptions& options)
    : conv1_(1, config.width, 3, convolution(1, 1, false, options)),
      bn1_(config.width, 1e-5, 0.1, options),
      pool_(1),
      dropout_(config.dropout) {
  register_module("conv1", conv1_);
  register_module("bn1", bn1_);
  std::int64_t channels = config.width;
  for (int stage = 0; stage < 4; ++stage) {
    const std::int64_t width = config.width << stage;
    auto blocks = std::make_shared<Sequential>();
    blocks->emplace<BasicBlock>(channels, width, stage == 0 ? 1 : 2, options);
    blocks->emplace<BasicBlock>(width, width, 1, options);
    register_module("layer" + std::to_string(stage + 1), blocks);
    stages_.push_back(std::move(blocks));
    channels = width;
  }
  register_module("pool", pool_);
  register_module("dropout", dropout_);
  fc_ = std::make_unique<Linear>(channels, config.num_classes, LinearOptions{.tensor = options});
  register_module("fc", *fc_);
}

Variable ResNet::forward(const Tensor& images) {
  const ForwardScope scope(*this);
  Variable x = bn1_.forward_relu(conv1_.forward(images_of(images)));
  for (const auto& stage : stages_) x = stage->forward(x);
  x = pool_.forward(x);
  return fc_->forward(dropout_.forward(reshape(x, {x.size(0), x.size(1)})));
}

}  // namespace castor::samples
