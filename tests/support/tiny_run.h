// The smallest thing that the runner can train: a perceptron, samples made by a formula, a registry with both, and a
// config as a tree. The classes can be told apart, so losses fall; everything is over in milliseconds.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "autograd/nn/layers.h"
#include "autograd/nn/trainable.h"
#include "autograd/ops/softmax.h"
#include "core/base/philox.h"
#include "strategy/builtins.h"
#include "strategy/config.h"
#include "strategy/config/text_source.h"
#include "strategy/data/dataset.h"
#include "strategy/registry.h"

namespace castor::test {

/// Options of TinyClassifier.
struct TinyClassifierConfig {
  std::int64_t width = 16;
  double dropout = 0.25;
};
/// Names every option once.
template <class V>
void describe(V& v, TinyClassifierConfig& c) {
  v.field("width", c.width, "of the hidden layer", strategy::at_least(1));
  v.field("dropout", c.dropout, "share dropped of the hidden layer", strategy::at_least(0), strategy::less_than(1));
}

/// 8 numbers - width - 3 classes: first, dropout, second.
class TinyClassifier final : public autograd::TrainableModel {
 public:
  using Config = TinyClassifierConfig;
  TinyClassifier(const Config& config, const autograd::TensorOptions& options)
      : first_(8, config.width, {.tensor = options}),
        dropout_(config.dropout),
        second_(config.width, 3, {.tensor = options}) {
    register_module("first", first_);
    register_module("dropout", dropout_);
    register_module("second", second_);
  }
  autograd::Variable forward(const Tensor& inputs) override {
    const autograd::ForwardScope scope(*this);
    return second_.forward(dropout_.forward(first_.forward(autograd::Variable(inputs), Activation::relu)));
  }
  std::map<std::string, autograd::Variable> loss(const autograd::Batch& batch) override {
    return {{"loss", autograd::cross_entropy(forward(batch.inputs), batch.targets)}};
  }

 private:
  autograd::Linear first_;
  autograd::Dropout dropout_;
  autograd::Linear second_;
};

/// Options of TinySamples.
struct TinySamplesConfig {
  std::int64_t count = 10;
  std::int64_t first = 0;
};
/// Names every option once.
template <class V>
void describe(V& v, TinySamplesConfig& c) {
  v.field("count", c.count, "samples", strategy::at_least(1));
  v.field("first", c.first, "number of the first sample", strategy::at_least(0));
}

/// Sample i is of class i % 3 and has noise of its own around the class's pattern.
class TinySamples final : public strategy::Dataset {
 public:
  using Config = TinySamplesConfig;
  explicit TinySamples(const Config& config) : config_(config) {}
  std::int64_t size() const override { return config_.count; }
  autograd::Batch batch(std::span<const std::int64_t> samples) const override {
    std::vector<float> inputs;
    std::vector<std::int64_t> targets;
    for (const std::int64_t sample : samples) {
      const auto number = static_cast<std::uint64_t>(config_.first + sample);
      for (std::uint64_t j = 0; j < 8; ++j) {
        const float noise = uniform_from_word(philox({5, number}, j).word[0]) - 0.5f;
        inputs.push_back((j % 3 == number % 3 ? 1.0f : 0.0f) + noise);
      }
      targets.push_back(static_cast<std::int64_t>(number % 3));
    }
    const auto n = static_cast<std::int64_t>(samples.size());
    return {Tensor::from_values(inputs, {n, 8}), Tensor::from_values(targets, {n})};
  }

 private:
  Config config_;
};

/// A registry's tables with the library's types and these two.
inline void add_tiny_types(strategy::Registry& registry) {
  strategy::add_builtins(registry);
  registry.models.add<TinyClassifierConfig>(
      "TinyClassifier", "a perceptron of 8 inputs and 3 classes",
      [](const TinyClassifierConfig& config, const autograd::TensorOptions& options) {
        return std::make_shared<TinyClassifier>(config, options);
      });
  registry.datasets.add<TinySamplesConfig>(
      "TinySamples", "8 numbers of 3 classes",
      [](const TinySamplesConfig& config) { return std::make_shared<const TinySamples>(config); });
}

/// Ten samples in micro-batches of four for three epochs, validated on six others: three micro-steps an epoch.
///   overrides  as for --cfg-options
inline strategy::ConfigNode tiny_config(const std::string& work_dir, const std::vector<std::string>& overrides = {}) {
  strategy::ConfigNode config = strategy::read_yaml_text(R"(
model: {type: TinyClassifier}
train_dataloader: {batch_size: 4, dataset: {type: TinySamples}}
train_cfg: {max_epochs: 3}
optim_wrapper: {optimizer: {type: AdamW, lr: 0.01}}
val_dataloader: {batch_size: 4, dataset: {type: TinySamples, count: 6, first: 100}}
val_cfg: {}
val_evaluator: {type: Accuracy}
strategy: {type: ColossalAIStrategy, plugin: null}
default_hooks: {logger: {type: LoggerHook, interval: 1}}
randomness: {seed: 5}
log_level: ERROR
)",
                                                         "tiny.yaml");
  config.set("work_dir", work_dir);
  strategy::Diagnostics diagnostics;
  strategy::apply_overrides(config, overrides, diagnostics);
  diagnostics.throw_if_any("overrides");
  return config;
}

}  // namespace castor::test
