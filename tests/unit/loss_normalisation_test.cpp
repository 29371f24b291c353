// loss_normalisation: a window's gradient as the mean over all targets that count is that of one large batch, however
// unequally micro-batches are filled, with the same bits for every split.
#include <cmath>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "autograd/nn/layers.h"
#include "autograd/nn/trainable.h"
#include "autograd/ops/softmax.h"
#include "autograd/optim/sgd.h"
#include "core/ops/cast.h"
#include "core/ops/random.h"
#include "dist/comm_thread.h"
#include "strategy/colossalai_strategy.h"
#include "strategy/ddp/torch_ddp_plugin.h"
#include "strategy/gemini/gemini_plugin.h"
#include "strategy/low_level_zero/low_level_zero_plugin.h"

using namespace castor;
using namespace castor::strategy;

namespace {

constexpr std::int64_t kMicroBatches = 4;
constexpr std::int64_t kSamples = 8;  // of each
constexpr int kUpdates = 3;

class OneLayer final : public autograd::TrainableModel {
 public:
  explicit OneLayer(const autograd::TensorOptions& options) : layer_(6, 5, {.tensor = options}) {
    register_module("layer", layer_);
  }
  autograd::Variable forward(const Tensor& inputs) override {
    const autograd::ForwardScope scope(*this);
    return layer_.forward(autograd::Variable(inputs));
  }
  std::map<std::string, autograd::Variable> loss(const autograd::Batch& batch) override {
    return {{"loss", autograd::cross_entropy(forward(batch.inputs), batch.targets)}};
  }

 private:
  autograd::Linear layer_;
};

/// Micro-batches [first, first + count) of an update as one batch; the k-th has 2 k + 1 targets that count.
autograd::Batch batch_of(int update, std::int64_t first, std::int64_t count) {
  autograd::Batch batch{Tensor::empty({count * kSamples, 6}, DType::f32),
                        Tensor::empty({count * kSamples}, DType::i64)};
  for (std::int64_t i = 0; i < count * kSamples; ++i) {
    const std::int64_t k = first + i / kSamples, in_batch = i % kSamples;
    const auto number = static_cast<std::uint64_t>(update * kMicroBatches * kSamples + first * kSamples + i);
    fill_normal(batch.inputs.select(0, i), {5, number});
    batch.targets.data<std::int64_t>()[i] = in_batch <= 2 * k ? static_cast<std::int64_t>(number % 5) : -100;
  }
  return batch;
}

struct Layout {
  int world_size = 1;
  std::int64_t micro_steps = kMicroBatches;
  std::function<std::unique_ptr<Plugin>()> plugin = {};
};

struct Outcome {
  std::map<std::string, std::vector<float>> weights;
  std::vector<double> norms;
};

Outcome train(const Layout& layout, bool counts_items, Precision precision, const std::optional<ClipConfig>& clip) {
  Outcome outcome;
  std::mutex mutex;
  const auto run = [&](ColossalAIStrategy& strategy) {
    PrepareOptions options;
    options.optimizer = [] {
      autograd::SGDConfig config;
      config.lr = 0.5;
      return std::make_unique<autograd::SGD>(config);
    };
    options.counts_items = counts_items;
    options.accumulative_counts = layout.micro_steps;
    options.clip = clip;
    options.dispatch.max_iters = 1000;
    strategy.prepare([](const autograd::TensorOptions& tensor) { return std::make_shared<OneLayer>(tensor); }, options);
    const std::int64_t together = kMicroBatches / (layout.world_size * layout.micro_steps);
    std::vector<double> norms;
    for (int update = 0; update < kUpdates; ++update) {
      for (std::int64_t m = 0; m < layout.micro_steps; ++m) {
        const std::int64_t k = m * layout.world_size + strategy.rank();
        const StepResult step = strategy.train_step(batch_of(update, k * together, together));
        if (step.update.grad_norm) norms.push_back(*step.update.grad_norm);
      }
    }
    std::map<std::string, Tensor> weights;  // reading one may gather it: all ranks do
    for (const auto& [name, variable] : strategy.model().named_parameters())
      weights[name] = cast(variable.data(), DType::f32);
    const std::lock_guard lock(mutex);
    for (const auto& [name, weight] : weights) outcome.weights[name] = weight.to_vector<float>();
    outcome.norms = norms;
  };
  if (!layout.plugin) {
    ColossalAIStrategy strategy(kCpu, 7, {}, precision);
    run(strategy);
  } else {
    dist::run_ranks(layout.world_size, [&](dist::Comm& comm) {
      ColossalAIStrategy strategy(kCpu, 7, {}, layout.plugin(), comm, precision);
      run(strategy);
    });
  }
  return outcome;
}

double distance(const Outcome& a, const Outcome& b) {
  double largest = 0;
  for (const auto& [name, weights] : a.weights) {
    for (std::size_t i = 0; i < weights.size(); ++i)
      largest = std::max(largest, static_cast<double>(std::abs(weights[i] - b.weights.at(name)[i])));
  }
  return largest;
}

ClipConfig norm_clip() {
  ClipConfig clip;
  clip.max_norm = 0.3;
  return clip;
}

ClipConfig value_clip() {
  ClipConfig clip;
  clip.type = "value";
  clip.clip_value = 0.05;
  return clip;
}

template <class P>
std::function<std::unique_ptr<Plugin>()> plugin(Precision precision) {
  return [precision] {
    typename P::Config config;
    if constexpr (requires { config.precision; }) config.precision = precision_name(precision);
    if constexpr (requires { config.enable_gradient_accumulation; }) config.enable_gradient_accumulation = true;
    return std::make_unique<P>(config);
  };
}

}  // namespace

TEST_CASE("counted in tokens, micro-batches with unequal numbers of targets train like one large batch") {
  const Layout small, large{1, 1};
  for (const auto& clip : {std::optional<ClipConfig>{}, std::optional(norm_clip()), std::optional(value_clip())}) {
    const Outcome whole = train(large, true, Precision::fp32, clip);
    CHECK(distance(whole, train(large, false, Precision::fp32, clip)) < 1e-6);  // one micro-batch: no difference
    const Outcome by_tokens = train(small, true, Precision::fp32, clip);
    CHECK(distance(by_tokens, whole) < 1e-6);
    CHECK(distance(train(small, false, Precision::fp32, clip), whole) > 1e-3);
    REQUIRE(by_tokens.norms.size() == whole.norms.size());
    for (std::size_t i = 0; i < whole.norms.size(); ++i)
      CHECK(by_tokens.norms[i] == doctest::Approx(whole.norms[i]).epsilon(1e-5));
  }
}

TEST_CASE("counted in tokens, every split of a global batch keeps its bits under every plugin") {
  for (const Precision precision : {Precision::fp32, Precision::bf16, Precision::fp16}) {
    CAPTURE(precision_name(precision));
    const Layout layouts[] = {{2, 2, plugin<TorchDDPPlugin>(precision)},
                              {4, 1, plugin<LowLevelZeroPlugin>(precision)},
                              {2, 2, plugin<GeminiPlugin>(precision)},
                              {1, 4, plugin<LowLevelZeroPlugin>(precision)}};
    const Outcome expected = train(layouts[3], true, precision, norm_clip());
    for (const Layout& layout : layouts) {
      CAPTURE(layout.world_size);
      const Outcome got = train(layout, true, precision, norm_clip());
      CHECK(got.weights == expected.weights);
      CHECK(got.norms == expected.norms);
    }
  }
}

TEST_CASE("what a loss is the mean over is counted from integer targets, or told by the shape") {
  const OneLayer model({});
  const auto items = [&](const Tensor& targets) {
    const autograd::LossItems found = model.loss_items({Tensor::zeros({3, 6}, DType::f32), targets});
    return std::pair(found.counted, found.all);
  };
  CHECK(items(Tensor::from_values(std::vector<std::int64_t>{1, -100, 2, -100}, {4})) ==
        std::pair<std::int64_t, std::int64_t>(2, 4));
  CHECK(items(Tensor::from_values(std::vector<std::int32_t>{-100, -100}, {2})) ==
        std::pair<std::int64_t, std::int64_t>(0, 2));
  CHECK(items(Tensor::zeros({3, 2}, DType::f32)) == std::pair<std::int64_t, std::int64_t>(6, 6));
  CHECK(items({}) == std::pair<std::int64_t, std::int64_t>(3, 3));
}
