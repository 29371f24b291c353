// Three classifiers of 28x28 grey images: a perceptron, LeNet's shape with wider layers, and an 18-layer residual
// network for small images. Names of modules follow torchvision's where it has the model.
//
// Sources: LeCun et al. 1998, "Gradient-based learning applied to document recognition"; He et al. 2016,
// arXiv:1512.03385.
#pragma once

#include <memory>

#include "autograd/nn/loss.h"
#include "autograd/nn/trainable.h"
#include "autograd/nn/vision.h"
#include "strategy/config/constraint.h"

namespace castor::samples {

/// What the three classifiers share: cross-entropy over logits [N, classes].
class ImageClassifier : public autograd::TrainableModel {
 public:
  /// {"loss": mean cross-entropy in nats a sample}. inputs f32 [N, 1, 28, 28], targets i64|i32 [N].
  std::map<std::string, autograd::Variable> loss(const autograd::Batch& batch) override;

 protected:
  ImageClassifier() { register_module("criterion", criterion_); }

 private:
  autograd::CrossEntropyLoss criterion_;
};

/// Options of the perceptron.
struct MlpClassifierConfig {
  std::int64_t width = 512;
  std::int64_t num_classes = 10;
  double dropout = 0;
};
/// Names every option once.
template <class V>
void describe(V& v, MlpClassifierConfig& c) {
  v.field("width", c.width, "of both hidden layers", strategy::at_least(1));
  v.field("num_classes", c.num_classes, "classes", strategy::at_least(1));
  v.field("dropout", c.dropout, "share dropped after each hidden layer", strategy::at_least(0), strategy::less_than(1));
}

/// 784 - width - width - classes with ReLU: fc1, fc2, fc3.
class MlpClassifier final : public ImageClassifier {
 public:
  using Config = MlpClassifierConfig;
  explicit MlpClassifier(const Config& config = {}, const autograd::TensorOptions& options = {});
  /// images [N, 1, 28, 28] or [N, 784] -> logits [N, num_classes]
  autograd::Variable forward(const Tensor& images) override;

 private:
  autograd::Linear fc1_, fc2_, fc3_;
  autograd::Dropout dropout1_, dropout2_;
};

/// Options of LeNet.
struct LeNetConfig {
  std::int64_t width = 32;
  std::int64_t num_classes = 10;
  double dropout = 0;
};
/// Names every option once.
template <class V>
void describe(V& v, LeNetConfig& c) {
  v.field("width", c.width, "channels of the first convolution; the second has twice as many", strategy::at_least(1));
  v.field("num_classes", c.num_classes, "classes", strategy::at_least(1));
  v.field("dropout", c.dropout, "share dropped before the last layer", strategy::at_least(0), strategy::less_than(1));
}

/// Two 5x5 convolutions with padding, ReLU and 2x2 max pooling, then 4 width * 49 / 2 - 128 - classes: conv1, conv2,
/// fc1, fc2.
class LeNet final : public ImageClassifier {
 public:
  using Config = LeNetConfig;
  explicit LeNet(const Config& config = {}, const autograd::TensorOptions& options = {});
  /// images [N, 1, 28, 28] -> logits [N, num_classes]
  autograd::Variable forward(const Tensor& images) override;

 private:
  autograd::Conv2d conv1_, conv2_;
  autograd::MaxPool2d pool_;
  autograd::Linear fc1_, fc2_;
  autograd::Dropout dropout_;
};

/// Two 3x3 convolutions with batch norm, added to the input (projected by a 1x1 convolution where the shape changes):
/// conv1, bn1, conv2, bn2, downsample.0, downsample.1.
class BasicBlock final : public autograd::Layer {
 public:
  BasicBlock(std::int64_t in_channels, std::int64_t out_channels, std::int64_t stride,
             const autograd::TensorOptions& options);
  autograd::Variable forward(const autograd::Variable& x) override;

 private:
  autograd::Conv2d conv1_;
  autograd::BatchNorm2d bn1_;
  autograd::Conv2d conv2_;
  autograd::BatchNorm2d bn2_;
  std::shared_ptr<autograd::Sequential> downsample_;
};

/// Options of the residual network.
struct ResNetConfig {
  std::int64_t width = 16;
  std::int64_t num_classes = 10;
  double dropout = 0;
};
/// Names every option once.
template <class V>
void describe(V& v, ResNetConfig& c) {
  v.field("width", c.width, "channels of the first stage; each later one has twice as many", strategy::at_least(1));
  v.field("num_classes", c.num_classes, "classes", strategy::at_least(1));
  v.field("dropout", c.dropout, "share dropped before the last layer", strategy::at_least(0), strategy::less_than(1));
}

/// A 3x3 stem without pooling, four stages of two basic blocks with strides 1, 2, 2, 2, global average pooling: conv1,
/// bn1, layer1 .. layer4, fc.
class ResNet final : public ImageClassifier {
 public:
  using Config = ResNetConfig;
  explicit ResNet(const Config& config = {}, const autograd::TensorOptions& options = {});
  /// images [N, 1, H, W] -> logits [N, num_classes]
  autograd::Variable forward(const Tensor& images) override;

 private:
  autograd::Conv2d conv1_;
  autograd::BatchNorm2d bn1_;
  std::vector<std::shared_ptr<autograd::Sequential>> stages_;
  autograd::AdaptiveAvgPool2d pool_;
  autograd::Dropout dropout_;
  std::unique_ptr<autograd::Linear> fc_;
};

}  // namespace castor::samples
