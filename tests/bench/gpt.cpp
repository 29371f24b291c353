// A decoder of 6 layers, width 384, on 256 bytes of context of the King James text; batch 8, AdamW 3e-4 (0.9, 0.95),
// decay 0.1. Peer: gpt in peers/torch_models.py.
#include "autograd/optim/adam.h"
#include "samples/gpt/dataset.h"
#include "samples/gpt/model.h"
#include "tests/bench/training.h"

int main(int argc, char** argv) {
  using namespace castor;
  constexpr std::int64_t kContext = 256;
  bench::TrainingCase training;
  training.name = "gpt-6x384-t256-b8-adamw";
  training.unit = "tokens/s";
  training.batch_size = 8;
  training.items_each = kContext;
  training.warmup_steps = 2;
  training.steps_per_repeat = 1;
  training.dataset = [] {
    samples::ByteTextConfig config;
    config.context = kContext;
    config.held_out_fraction = 0;
    return std::make_shared<const samples::ByteText>(config);
  };
  training.model = [](const autograd::TensorOptions& options) {
    samples::GptConfig config;
    config.n_layer = 6;
    config.n_head = 6;
    config.n_embd = 384;
    config.block_size = kContext;
    config.vocab_size = 256;
    return std::make_shared<samples::Gpt>(config, options);
  };
  training.optimizer = [] {
    autograd::AdamWConfig config;
    config.lr = 3e-4;
    config.betas = {0.9, 0.95};
    config.weight_decay = 0.1;
    return std::make_unique<autograd::AdamW>(config);
  };
  return bench::run_training(argc, argv, training);
}
