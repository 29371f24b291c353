// A user's own module and model. SwishLayer holds the parameter of the op in swish.h; SpiralNet is three linear layers
// with it in between.
//
// Delicate: every forward opens with a ForwardScope, which is where strategies hook in; and a model says how it is
// trained by its `loss`, and nothing else.
#pragma once

#include "autograd/nn/layers.h"
#include "autograd/nn/loss.h"
#include "autograd/nn/trainable.h"
#include "strategy/config/field.h"

namespace extend {

/// swish over the last axis, with a slope for each feature.
///   beta  [features], ones
class SwishLayer final : public castor::autograd::Layer {
 public:
  SwishLayer(std::int64_t features, const castor::autograd::TensorOptions& options);
  /// x [..., features] -> the same shape
  castor::autograd::Variable forward(const castor::autograd::Variable& x) override;

 private:
  castor::autograd::Variable beta_;
};

/// Options of SpiralNet.
struct SpiralNetConfig {
  std::int64_t width = 64;
  std::int64_t classes = 3;
};

/// Names every option once.
template <class V>
void describe(V& v, SpiralNetConfig& c) {
  v.field("width", c.width, "of both hidden layers", castor::strategy::at_least(1));
  v.field("classes", c.classes, "arms of the spiral", castor::strategy::at_least(2));
}

/// 2 - width - width - classes: layers.0 .. layers.4.
class SpiralNet final : public castor::autograd::TrainableModel {
 public:
  SpiralNet(const SpiralNetConfig& config, const castor::autograd::TensorOptions& options);
  /// points f32 [n, 2] -> logits [n, classes]
  castor::autograd::Variable forward(const castor::Tensor& points) override;
  /// {"loss": mean cross-entropy}; targets i64 [n]
  std::map<std::string, castor::autograd::Variable> loss(const castor::autograd::Batch& batch) override;

 private:
  castor::autograd::Sequential layers_;
  castor::autograd::CrossEntropyLoss criterion_;
};

}  // namespace extend
