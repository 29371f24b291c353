// The model of the example. Parameters are only declared here; the runner fills them from the seed.
#include "samples/extend/spiral_net.h"

#include "samples/extend/swish.h"

namespace extend {

using namespace castor::autograd;

SwishLayer::SwishLayer(std::int64_t features, const TensorOptions& options)
    : beta_(register_parameter("beta", {features}, Init::ones(), options)) {}

Variable SwishLayer::forward(const Variable& x) {
  const ForwardScope scope(*this);
  return swish(x, beta_);
}

SpiralNet::SpiralNet(const SpiralNetConfig& config, const TensorOptions& options) {
  const LinearOptions linear{.tensor = options};
  layers_.emplace<Linear>(2, config.width, linear);
  layers_.emplace<SwishLayer>(config.width, options);
  layers_.emplace<Linear>(config.width, config.width, linear);
  layers_.emplace<SwishLayer>(config.width, options);
  layers_.emplace<Linear>(config.width, config.classes, linear);
  register_module("layers", layers_);
  register_module("criterion", criterion_);
}

Variable SpiralNet::forward(const castor::Tensor& points) {
  const ForwardScope scope(*this);
  return layers_.forward(Variable(points));
}

std::map<std::string, Variable> SpiralNet::loss(const Batch& batch) {
  return {{"loss", criterion_.forward(forward(batch.inputs), batch.targets)}};
}

}  // namespace extend
