// The models and data of the same-bits matrix: the samples' GPT and residual network at sizes of a few thousand
// parameters, with everything whose bits could depend on how a batch is split.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "samples/fashion_mnist/model.h"
#include "samples/gpt/model.h"
#include "strategy/data/dataset.h"
#include "strategy/strategy.h"
#include "tests/parity/counted_numbers.h"

namespace castor::test {

/// Token sequences, or images with labels, made from their numbers.
class MadeSamples final : public strategy::Dataset {
 public:
  static constexpr std::int64_t kClasses = 29, kLength = 10, kSide = 10;
  explicit MadeSamples(bool are_images, std::int64_t size = 240) : are_images_(are_images), size_(size) {}
  std::int64_t size() const override { return size_; }
  autograd::Batch batch(std::span<const std::int64_t> samples) const override {
    const auto n = static_cast<std::int64_t>(samples.size());
    std::vector<float> pixels;
    std::vector<std::int64_t> tokens, targets;
    for (const std::int64_t sample : samples) {
      const std::string number = std::to_string(sample);
      if (are_images_) {
        const std::vector<float> image = counted_floats("image " + number, kSide * kSide);
        pixels.insert(pixels.end(), image.begin(), image.end());
        targets.push_back(sample % 7);
        continue;
      }
      const std::vector<std::int64_t> text = counted_integers("text " + number, kLength + 1, kClasses);
      tokens.insert(tokens.end(), text.begin(), text.end() - 1);
      targets.insert(targets.end(), text.begin() + 1, text.end());
    }
    if (are_images_) return {Tensor::from_values(pixels, {n, 1, kSide, kSide}), Tensor::from_values(targets, {n})};
    return {Tensor::from_values(tokens, {n, kLength}), Tensor::from_values(targets, {n, kLength})};
  }

 private:
  bool are_images_;
  std::int64_t size_;
};

/// Stops the training of the parameters whose names begin with `prefix`.
inline void freeze(autograd::TrainableModel& model, const std::string& prefix) {
  for (auto [name, parameter] : model.named_parameters()) {
    if (name.starts_with(prefix)) parameter.set_requires_grad(false);
  }
}

/// A decoder of two blocks: dropout, tied weights, a frozen feed-forward layer.
inline std::shared_ptr<autograd::TrainableModel> make_matrix_gpt(const autograd::TensorOptions& options) {
  samples::GptConfig config;
  config.n_layer = 2;
  config.n_head = 2;
  config.n_embd = 16;
  config.block_size = 12;
  config.vocab_size = MadeSamples::kClasses;
  config.dropout = 0.1;
  config.tie_weights = true;
  auto model = std::make_shared<samples::Gpt>(config, options);
  freeze(*model, "blocks.0.mlp.fc.");
  return model;
}

/// A residual network: batch norm with its buffers, dropout, a frozen convolution.
inline std::shared_ptr<autograd::TrainableModel> make_matrix_convnet(const autograd::TensorOptions& options) {
  samples::ResNetConfig config;
  config.width = 2;
  config.num_classes = 7;
  config.dropout = 0.1;
  auto model = std::make_shared<samples::ResNet>(config, options);
  freeze(*model, "layer1.0.conv1.");
  return model;
}

}  // namespace castor::test
