// An 18-layer residual network of width 16 on Fashion-MNIST; batch 64, SGD 0.1, momentum 0.9, decay 5e-4.
// Peer: resnet in peers/torch_models.py.
#include "autograd/optim/sgd.h"
#include "samples/fashion_mnist/dataset.h"
#include "samples/fashion_mnist/model.h"
#include "tests/bench/training.h"

int main(int argc, char** argv) {
  using namespace castor;
  bench::TrainingCase training;
  training.name = "resnet18-small-w16-b64-sgd";
  training.unit = "samples/s";
  training.batch_size = 64;
  training.warmup_steps = 4;
  training.steps_per_repeat = 3;
  training.dataset = [] { return std::make_shared<const samples::FashionMnist>(); };
  training.model = [](const autograd::TensorOptions& options) {
    return std::make_shared<samples::ResNet>(samples::ResNetConfig{}, options);
  };
  training.optimizer = [] {
    autograd::SGDConfig config;
    config.lr = 0.1;
    config.momentum = 0.9;
    config.weight_decay = 5e-4;
    return std::make_unique<autograd::SGD>(config);
  };
  return bench::run_training(argc, argv, training);
}
