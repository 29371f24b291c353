// 784-512-512-10 with ReLU on Fashion-MNIST; batch 128, Adam 1e-3. Peer: mlp in peers/torch_models.py.
#include "autograd/optim/adam.h"
#include "samples/fashion_mnist/dataset.h"
#include "samples/fashion_mnist/model.h"
#include "tests/bench/training.h"

int main(int argc, char** argv) {
  using namespace castor;
  bench::TrainingCase training;
  training.name = "mlp-784-512-512-10-b128-adam";
  training.unit = "samples/s";
  training.batch_size = 128;
  training.warmup_steps = 21;
  training.steps_per_repeat = 100;
  training.dataset = [] { return std::make_shared<const samples::FashionMnist>(); };
  training.model = [](const autograd::TensorOptions& options) {
    return std::make_shared<samples::MlpClassifier>(samples::MlpClassifierConfig{}, options);
  };
  training.optimizer = [] { return std::make_unique<autograd::Adam>(autograd::AdamConfig{}); };
  return bench::run_training(argc, argv, training);
}
