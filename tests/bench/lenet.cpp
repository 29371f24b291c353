// LeNet's shape with 32 and 64 channels on Fashion-MNIST; batch 128, Adam 1e-3. Peer: lenet in peers/torch_models.py.
#include "autograd/optim/adam.h"
#include "samples/fashion_mnist/dataset.h"
#include "samples/fashion_mnist/model.h"
#include "tests/bench/training.h"

int main(int argc, char** argv) {
  using namespace castor;
  bench::TrainingCase training;
  training.name = "lenet-b128-adam";
  training.unit = "samples/s";
  training.batch_size = 128;
  training.warmup_steps = 4;
  training.steps_per_repeat = 8;
  training.dataset = [] { return std::make_shared<const samples::FashionMnist>(); };
  training.model = [](const autograd::TensorOptions& options) {
    return std::make_shared<samples::LeNet>(samples::LeNetConfig{}, options);
  };
  training.optimizer = [] { return std::make_unique<autograd::Adam>(autograd::AdamConfig{}); };
  return bench::run_training(argc, argv, training);
}
