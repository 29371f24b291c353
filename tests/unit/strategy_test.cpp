// The steps of ColossalAIStrategy without a plugin: accumulation, clipping, the remainder rule, and equal bits across
// restarts.
#include <cmath>

#include <doctest/doctest.h>

#include "autograd/graph.h"
#include "autograd/nn/layers.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/softmax.h"
#include "autograd/optim/adam.h"
#include "autograd/optim/sgd.h"
#include "core/base/philox.h"
#include "strategy/colossalai_strategy.h"
#include "strategy/data/data_loader.h"
#include "tests/support/mixed_model.h"

using namespace castor;
using namespace castor::strategy;

namespace {

/// Two layers with dropout between them, classifying 8 numbers into 3 classes.
class SmallModel final : public autograd::TrainableModel {
 public:
  explicit SmallModel(const autograd::TensorOptions& options)
      : first_(8, 16, {.tensor = options}), dropout_(0.25), second_(16, 3, {.tensor = options}) {
    register_module("first", first_);
    register_module("dropout", dropout_);
    register_module("second", second_);
  }
  autograd::Variable forward(const Tensor& inputs) override {
    const autograd::ForwardScope scope(*this);
    return second_.forward(dropout_.forward(autograd::relu(first_.forward(autograd::Variable(inputs)))));
  }
  std::map<std::string, autograd::Variable> loss(const autograd::Batch& batch) override {
    return {{"loss", autograd::cross_entropy(forward(batch.inputs), batch.targets)}};
  }

 private:
  autograd::Linear first_;
  autograd::Dropout dropout_;
  autograd::Linear second_;
};

SamplerOptions loading() {
  SamplerOptions options;
  options.seed = 3;
  options.batch_size = 4;
  return options;
}

PrepareOptions training(std::int64_t counts, std::int64_t max_iters) {
  PrepareOptions options;
  options.optimizer = [] {
    autograd::AdamWConfig config;
    config.lr = 1e-2;
    return std::make_unique<autograd::AdamW>(config);
  };
  options.accumulative_counts = counts;
  options.dispatch.max_iters = max_iters;
  return options;
}

const ModelFactory kModel = [](const autograd::TensorOptions& options) {
  return std::make_shared<SmallModel>(options);
};

std::vector<std::vector<float>> weights(BaseStrategy& strategy) {
  std::vector<std::vector<float>> values;
  for (const auto& [name, parameter] : strategy.model().named_parameters())
    values.push_back(parameter.data().to_vector<float>());
  return values;
}

}  // namespace

TEST_CASE("two runs with one seed give equal bits, another seed gives others") {
  const auto run = [](std::uint64_t seed) {
    ColossalAIStrategy strategy(kCpu, seed);
    strategy.prepare(kModel, training(1, 10));
    DataLoader loader(std::make_shared<test::CountedSamples>(48), loading());
    for (int i = 0; i < 10; ++i) strategy.train_step(loader.next());
    return weights(strategy);
  };
  CHECK(run(1) == run(1));
  CHECK(run(1) != run(2));
}

TEST_CASE("a window of four micro-steps applies the mean of the four gradients, added in order") {
  DataLoader loader(std::make_shared<test::CountedSamples>(48), loading());
  ColossalAIStrategy accumulated(kCpu, 1);
  accumulated.prepare(kModel, training(4, 4));
  ColossalAIStrategy by_hand(kCpu, 1);
  by_hand.prepare(kModel, training(1, 4));
  std::vector<std::vector<float>> sums;
  for (std::int64_t k = 0; k < 4; ++k) {
    const auto batch = loader.at(0, k);
    const StepResult step = accumulated.train_step(batch);
    CHECK(step.update.did_update == (k == 3));
    // The same micro-batch through a fresh model with the same weights and random numbers.
    ColossalAIStrategy fresh(kCpu, 1);
    fresh.prepare(kModel, training(5, 5));
    fresh.optim_wrapper()->set_inner_count(k, k);
    fresh.train_step(batch);
    std::size_t i = 0;
    for (const auto& [name, parameter] : fresh.model().named_parameters()) {
      const auto gradient = parameter.grad().to_vector<float>();
      if (k == 0) {
        sums.push_back(gradient);
      } else {
        for (std::size_t j = 0; j < gradient.size(); ++j) sums[i][j] += gradient[j];
      }
      ++i;
    }
  }
  std::size_t i = 0;
  for (const auto& [name, parameter] : by_hand.model().named_parameters()) {
    for (float& value : sums[i]) value *= 0.25f;
    parameter.set_grad(Tensor::from_values(sums[i++], parameter.shape()));
  }
  by_hand.optim_wrapper()->stepper().step();
  CHECK(weights(accumulated) == weights(by_hand));
}

TEST_CASE("the last window of a run is divided by its own length") {
  DataLoader loader(std::make_shared<test::CountedSamples>(48), loading());
  ColossalAIStrategy short_window(kCpu, 1);
  short_window.prepare(kModel, training(4, 2));
  CHECK_FALSE(short_window.train_step(loader.at(0, 0)).update.did_update);
  CHECK(short_window.train_step(loader.at(0, 1)).update.did_update);
  ColossalAIStrategy of_two(kCpu, 1);
  of_two.prepare(kModel, training(2, 2));
  of_two.train_step(loader.at(0, 0));
  of_two.train_step(loader.at(0, 1));
  CHECK(weights(short_window) == weights(of_two));
}

TEST_CASE("a run stopped and restarted from its cursor gives equal bits") {
  const auto dataset = std::make_shared<test::CountedSamples>(48);
  ColossalAIStrategy whole(kCpu, 9);
  whole.prepare(kModel, training(4, 32));
  DataLoader loader(dataset, loading());
  for (int i = 0; i < 32; ++i) whole.train_step(loader.next());

  ColossalAIStrategy first(kCpu, 9);
  first.prepare(kModel, training(4, 32));
  DataLoader before(dataset, loading());
  for (int i = 0; i < 16; ++i) first.train_step(before.next());
  const SamplerCursor cursor = before.cursor();
  CHECK(cursor == SamplerCursor{1, 4});

  ColossalAIStrategy second(kCpu, 77);  // its own weights and states are overwritten below
  PrepareOptions options = training(4, 32);
  options.dispatch.cur_iter = 16;
  second.prepare(kModel, options);
  const auto from = first.model().named_parameters();
  const auto to = second.model().named_parameters();
  for (std::size_t i = 0; i < from.size(); ++i)
    to[i].second.data().copy_from_host(from[i].second.data().view().data, from[i].second.data().view().bytes());
  const auto states = first.optim_wrapper()->stepper().named_states();
  for (const auto& [name, state] : second.optim_wrapper()->stepper().named_states()) {
    const View from = states.at(name).tensor.view();
    state.tensor.copy_from_host(from.data, from.bytes());
  }
  second.optim_wrapper()->stepper().set_step_count(first.optim_wrapper()->stepper().step_count());
  second.set_seed(9);
  DataLoader after(dataset, loading());
  after.seek(cursor);
  for (int i = 0; i < 16; ++i) second.train_step(after.next());
  CHECK(weights(second) == weights(whole));
}

TEST_CASE("clipping by norm scales all gradients together and reports the norm before it") {
  const auto batch = test::CountedSamples(48).batch(std::vector<std::int64_t>{0, 1, 2, 3});
  const auto stepped = [&](std::optional<ClipConfig> clip, std::optional<double>* norm) {
    ColossalAIStrategy strategy(kCpu, 1);
    PrepareOptions options = training(1, 1);
    options.optimizer = [] {
      autograd::SGDConfig config;
      config.lr = 1.0;
      return std::make_unique<autograd::SGD>(config);
    };
    options.clip = clip;
    strategy.prepare(kModel, options);
    const auto before = weights(strategy);
    *norm = strategy.train_step(batch).update.grad_norm;
    double moved = 0;
    const auto after = weights(strategy);
    for (std::size_t i = 0; i < after.size(); ++i) {
      for (std::size_t j = 0; j < after[i].size(); ++j)
        moved += std::pow(static_cast<double>(after[i][j]) - static_cast<double>(before[i][j]), 2);
    }
    return std::sqrt(moved);
  };
  std::optional<double> norm;
  const double free_step = stepped({}, &norm);
  CHECK_FALSE(norm.has_value());
  ClipConfig clip;
  clip.max_norm = free_step / 10;
  CHECK(stepped(clip, &norm) == doctest::Approx(free_step / 10).epsilon(1e-4));
  CHECK(*norm == doctest::Approx(free_step).epsilon(1e-4));
  clip.max_norm = free_step * 10;
  CHECK(stepped(clip, &norm) == doctest::Approx(free_step).epsilon(1e-6));
}

TEST_CASE("preparing twice changes nothing, and impossible combinations are refused with what to do") {
  ColossalAIStrategy strategy(kCpu, 1);
  strategy.prepare(kModel, training(1, 1));
  const auto* model = &strategy.model();
  strategy.prepare(kModel, training(1, 1));
  CHECK(&strategy.model() == model);

  ColossalAIStrategy unbounded(kCpu, 1);
  PrepareOptions options = training(4, 0);
  options.dispatch.max_iters.reset();
  CHECK_THROWS_WITH_AS(unbounded.prepare(kModel, options), doctest::Contains("max_iters"), ConfigError);

  ColossalAIStrategy evaluating(kCpu, 1);
  evaluating.prepare(kModel, {});
  const auto batch = test::CountedSamples(48).batch(std::vector<std::int64_t>{0, 1});
  CHECK(evaluating.val_step(batch).shape() == Shape{2, 3});
  CHECK_THROWS_AS(evaluating.train_step(batch), InternalError);
}
