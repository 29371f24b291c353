// Data parallel training: the same bits however a global batch is split over ranks and micro-steps.
#include <cmath>
#include <mutex>

#include <doctest/doctest.h>

#include "autograd/graph.h"
#include "autograd/nn/layers.h"
#include "autograd/nn/vision.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/softmax.h"
#include "autograd/optim/adam.h"
#include "autograd/random_state.h"
#include "core/ops/random.h"
#include "dist/comm_thread.h"
#include "strategy/colossalai_strategy.h"
#include "strategy/data/data_loader.h"
#include "strategy/ddp/torch_ddp_plugin.h"

using namespace castor;
using namespace castor::strategy;

namespace {

/// Everything whose bits could depend on the split: dropout, batch statistics, a tied weight, a frozen layer, and a
/// parameter that no loss reaches.
class MixedModel final : public autograd::TrainableModel {
 public:
  explicit MixedModel(const autograd::TensorOptions& options)
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
    register_module("unused", unused_);
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

class CountedSamples final : public Dataset {
 public:
  std::int64_t size() const override { return 96; }
  autograd::Batch batch(std::span<const std::int64_t> samples) const override {
    const auto n = static_cast<std::int64_t>(samples.size());
    autograd::Batch result{Tensor::empty({n, 8}, DType::f32), Tensor::empty({n}, DType::i64)};
    for (std::int64_t i = 0; i < n; ++i) {
      fill_normal(result.inputs.select(0, i), {5, static_cast<std::uint64_t>(samples[static_cast<std::size_t>(i)])});
      result.targets.data<std::int64_t>()[i] = samples[static_cast<std::size_t>(i)] % 3;
    }
    return result;
  }
};

/// Every tensor of a trained model and its optimizer, and what was logged.
struct Outcome {
  std::map<std::string, std::vector<float>> tensors;
  std::vector<double> grad_norms;
  friend bool operator==(const Outcome&, const Outcome&) = default;
};

Outcome train(ColossalAIStrategy& strategy, std::int64_t micro_steps, std::int64_t updates) {
  PrepareOptions options;
  options.optimizer = [] {
    autograd::AdamWConfig config;
    config.lr = 1e-2;
    return std::make_unique<autograd::AdamW>(config);
  };
  options.accumulative_counts = micro_steps;
  options.clip = ClipConfig{};
  options.clip->max_norm = 0.5;
  options.dispatch.max_iters = updates * micro_steps;
  strategy.prepare([](const autograd::TensorOptions& tensor) { return std::make_shared<MixedModel>(tensor); }, options);
  SamplerOptions loading;
  loading.seed = 3;
  loading.batch_size = 4;
  loading.world_size = strategy.world_size();
  loading.rank = strategy.rank();
  DataLoader loader(std::make_shared<CountedSamples>(), loading);
  Outcome outcome;
  for (std::int64_t i = 0; i < updates * micro_steps; ++i) {
    const StepResult step = strategy.train_step(loader.next());
    if (step.update.did_update) outcome.grad_norms.push_back(*step.update.grad_norm);
  }
  for (const auto& [name, variable] : strategy.model().named_parameters()) {
    outcome.tensors[name] = variable.data().to_vector<float>();
  }
  for (const auto& [name, variable] : strategy.model().named_buffers()) {
    if (variable.dtype() == DType::f32) outcome.tensors[name] = variable.data().to_vector<float>();
  }
  for (const auto& [name, state] : strategy.optim_wrapper()->stepper().named_states()) {
    outcome.tensors[name] = state.to_vector<float>();
  }
  return outcome;
}

/// The outcome of all ranks, which must agree.
Outcome train_on_ranks(int world_size, std::int64_t micro_steps, double bucket_cap_mb = 25, std::int64_t updates = 6) {
  std::mutex mutex;
  std::vector<Outcome> outcomes;
  dist::run_ranks(world_size, [&](dist::Comm& comm) {
    TorchDDPPlugin::Config plugin;
    plugin.bucket_cap_mb = bucket_cap_mb;
    ColossalAIStrategy strategy(kCpu, 7, {}, std::make_unique<TorchDDPPlugin>(plugin), comm);
    Outcome outcome = train(strategy, micro_steps, updates);
    const std::lock_guard lock(mutex);
    outcomes.push_back(std::move(outcome));
  });
  REQUIRE(outcomes.size() == static_cast<std::size_t>(world_size));
  for (const Outcome& outcome : outcomes) CHECK(outcome == outcomes.front());
  return outcomes.front();
}

/// The same without ranks or plugin.
Outcome train_alone(std::int64_t micro_steps) {
  ColossalAIStrategy strategy(kCpu, 7);
  return train(strategy, micro_steps, 6);
}

TEST_CASE(
    "ranks and micro-steps may share a global batch in any way: weights, buffers, states and norms keep their bits") {
  const Outcome four = train_alone(4);
  CHECK(train_on_ranks(1, 4) == four);
  CHECK(train_on_ranks(2, 2) == four);
  CHECK(train_on_ranks(4, 1) == four);
  const Outcome twelve = train_alone(12);
  CHECK(train_on_ranks(3, 4) == twelve);
  CHECK(train_on_ranks(6, 2) == twelve);
  CHECK(twelve.tensors != four.tensors);
}

TEST_CASE("buckets of any size give the same bits, more pieces than elements included") {
  const Outcome expected = train_on_ranks(2, 2);
  CHECK(train_on_ranks(2, 2, 1e-6) == expected);
  CHECK(train_on_ranks(2, 2, 0.001) == expected);
}

TEST_CASE("another order of addition gives other bits, so equality above is no accident") {
  // Two ranks that each sum their own micro-steps first: what a ring over local sums would do.
  dist::run_ranks(1, [&](dist::Comm& comm) {
    ColossalAIStrategy strategy(kCpu, 7, {}, std::make_unique<TorchDDPPlugin>(TorchDDPPlugin::Config{}), comm);
    PrepareOptions options;
    options.optimizer = [] { return std::make_unique<autograd::AdamW>(autograd::AdamWConfig{}); };
    options.accumulative_counts = 100;
    options.dispatch.max_iters = 100;
    strategy.prepare([](const autograd::TensorOptions& tensor) { return std::make_shared<MixedModel>(tensor); },
                     options);
    SamplerOptions loading;
    loading.seed = 3;
    loading.batch_size = 4;
    DataLoader loader(std::make_shared<CountedSamples>(), loading);
    std::vector<std::vector<float>> gradients;
    for (int k = 0; k < 4; ++k) {
      autograd::random_state().begin(7, 0, static_cast<std::uint64_t>(k));
      const auto losses = strategy.model().loss(loader.next());
      autograd::backward(losses.at("loss"));
      const autograd::Variable weight = strategy.model().named_parameters().at(0).second;
      gradients.push_back(weight.grad().to_vector<float>());
      weight.set_grad({});
    }
    int different = 0;
    for (std::size_t i = 0; i < gradients[0].size(); ++i) {
      const float in_order = ((gradients[0][i] + gradients[1][i]) + gradients[2][i]) + gradients[3][i];
      const float by_rank = (gradients[0][i] + gradients[2][i]) + (gradients[1][i] + gradients[3][i]);
      different += in_order != by_rank ? 1 : 0;
    }
    CHECK(different > 0);
  });
}

TEST_CASE("a parameter that is not f32 is refused by the plugin, naming it") {
  dist::run_ranks(1, [](dist::Comm& comm) {
    autograd::Variable half(Tensor::zeros({4}, DType::bf16), true);
    half.set_name("some.weight");
    CHECK_THROWS_WITH_AS(TorchDDPPlugin(TorchDDPPlugin::Config{}).make_exchange(comm, {half}),
                         doctest::Contains("'some.weight' must be f32"), DTypeError);
  });
}

}  // namespace
