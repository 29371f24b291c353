// Plain calls, as a program of a user's own makes them (samples/extend).
#include "samples/sample_types.h"

#include <memory>

#include "samples/fashion_mnist/dataset.h"
#include "samples/fashion_mnist/model.h"
#include "samples/gpt/dataset.h"
#include "samples/gpt/model.h"
#include "strategy/registry.h"

namespace castor::samples {
namespace {

template <class Model>
std::shared_ptr<autograd::TrainableModel> make_model(const typename Model::Config& config,
                                                     const autograd::TensorOptions& options) {
  return std::make_shared<Model>(config, options);
}

template <class Data>
std::shared_ptr<const strategy::Dataset> make_dataset(const typename Data::Config& config) {
  return std::make_shared<const Data>(config);
}

}  // namespace

void add_samples(strategy::Registry& registry) {
  registry.models
      .add<Gpt::Config>("Gpt", "a decoder over bytes in GPT-2's shape and its later variants", make_model<Gpt>)
      .add<MlpClassifier::Config>("MlpClassifier", "28x28 images: a perceptron with two hidden layers",
                                  make_model<MlpClassifier>)
      .add<LeNet::Config>("LeNet", "28x28 images: two convolutions and two linear layers", make_model<LeNet>)
      .add<ResNet::Config>("ResNet", "28x28 images: a residual network of 18 layers", make_model<ResNet>);
  registry.datasets
      .add<ByteText::Config>("ByteText", "windows of a text, byte by byte; the King James text by default",
                             make_dataset<ByteText>)
      .add<FashionMnist::Config>("FashionMNIST", "28x28 grey images of clothes in ten classes",
                                 make_dataset<FashionMnist>);
}

}  // namespace castor::samples
