// A small model and data set in which everything occurs whose bits could depend on how a batch is split over ranks.
#pragma once

#include <map>
#include <span>
#include <string>

#include "autograd/nn/layers.h"
#include "autograd/nn/trainable.h"
#include "autograd/nn/vision.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/softmax.h"
#include "core/ops/random.h"
#include "strategy/data/dataset.h"

namespace castor::test {

/// Dropout, batch statistics, a tied weight, a frozen layer, and a
/// parameter that no loss reaches.
class MixedModel final : public autograd::TrainableModel {
 public:
  /// has_unused   false: without the parameter that no loss reaches, which holds up whoever waits for all gradients
  explicit MixedModel(const autograd::TensorOptions& options, bool has_unused = true)
      : first_(8, 16, {.tensor = options}),
        norm_(16, 1e-5, 0.1, options),
        dropout_(0.25),
        middle_(16, 16, {.tensor = options}),
        frozen_(16, 16, {.tensor = options}),
        unused_(3, 3, {.tensor = options}),
        last_(16, 3, {.tensor = options}) {
    register_module("first", first_);
    register_module("norm", norm_);
    register_module("dropout", dropout_);
    register_module("middle", middle_);
    register_module("frozen", frozen_);
    if (has_unused) register_module("unused", unused_);
    register_module("last", last_);
    frozen_.weight().set_requires_grad(false);
    frozen_.bias().set_requires_grad(false);
  }
  autograd::Variable forward(const Tensor& inputs) override {
    const autograd::ForwardScope scope(*this);
    const std::int64_t n = inputs.size(0);
    autograd::Variable x = first_.forward(autograd::Variable(inputs));
    x = autograd::reshape(norm_.forward(autograd::reshape(x, {n, 16, 1, 1})), {n, 16});
    x = middle_.forward(dropout_.forward(autograd::relu(x)));
    x = middle_.forward(autograd::relu(x));
    return last_.forward(frozen_.forward(x));
  }
  std::map<std::string, autograd::Variable> loss(const autograd::Batch& batch) override {
    return {{"loss", autograd::cross_entropy(forward(batch.inputs), batch.targets)}};
  }

 private:
  autograd::Linear first_;
  autograd::BatchNorm2d norm_;
  autograd::Dropout dropout_;
  autograd::Linear middle_, frozen_, unused_, last_;
};

/// Samples whose values follow from their numbers.
class CountedSamples final : public strategy::Dataset {
 public:
  explicit CountedSamples(std::int64_t size = 96) : size_(size) {}
  std::int64_t size() const override { return size_; }
  autograd::Batch batch(std::span<const std::int64_t> samples) const override {
    const auto n = static_cast<std::int64_t>(samples.size());
    autograd::Batch result{Tensor::empty({n, 8}, DType::f32), Tensor::empty({n}, DType::i64)};
    for (std::int64_t i = 0; i < n; ++i) {
      fill_normal(result.inputs.select(0, i), {5, static_cast<std::uint64_t>(samples[static_cast<std::size_t>(i)])});
      result.targets.data<std::int64_t>()[i] = samples[static_cast<std::size_t>(i)] % 3;
    }
    return result;
  }

 private:
  std::int64_t size_;
};

}  // namespace castor::test
