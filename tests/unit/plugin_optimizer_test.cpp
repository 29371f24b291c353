// Every optimizer under every plugin: the bits of one process, also in the middle of a run that was saved under one
// layout and goes on under another, with one group of parameters and with several.
//
// Delicate: the model has parameters of several blocks, so that ranks really own parts of one; the test checks that.
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "autograd/nn/layers.h"
#include "autograd/nn/trainable.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/softmax.h"
#include "autograd/optim/adafactor.h"
#include "autograd/optim/adagrad.h"
#include "autograd/optim/adam.h"
#include "autograd/optim/adamw8bit.h"
#include "autograd/optim/came.h"
#include "autograd/optim/lamb.h"
#include "autograd/optim/lars.h"
#include "autograd/optim/lion.h"
#include "autograd/optim/rmsprop.h"
#include "autograd/optim/sgd.h"
#include "core/ops/cast.h"
#include "dist/comm_thread.h"
#include "strategy/colossalai_strategy.h"
#include "strategy/data/data_loader.h"
#include "strategy/ddp/torch_ddp_plugin.h"
#include "strategy/gemini/gemini_plugin.h"
#include "strategy/low_level_zero/low_level_zero_plugin.h"
#include "strategy/scheduler.h"
#include "tests/support/mixed_model.h"
#include "tests/support/temp_dir.h"

using namespace castor;
using namespace castor::strategy;

namespace {

/// Weights of 640 and 5120 elements, a norm, and biases.
class WideModel final : public autograd::TrainableModel {
 public:
  explicit WideModel(const autograd::TensorOptions& options)
      : first_(8, 80, {.tensor = options}),
        norm_(80, 1e-5, true, options),
        middle_(80, 64, {.tensor = options}),
        last_(64, 3, {.tensor = options}) {
    register_module("first", first_);
    register_module("norm", norm_);
    register_module("middle", middle_);
    register_module("last", last_);
  }
  autograd::Variable forward(const Tensor& inputs) override {
    const autograd::ForwardScope scope(*this);
    const autograd::Variable x = norm_.forward(first_.forward(autograd::Variable(inputs)));
    return last_.forward(autograd::relu(middle_.forward(autograd::relu(x))));
  }
  std::map<std::string, autograd::Variable> loss(const autograd::Batch& batch) override {
    return {{"loss", autograd::cross_entropy(forward(batch.inputs), batch.targets)}};
  }

 private:
  autograd::Linear first_;
  autograd::LayerNorm norm_;
  autograd::Linear middle_, last_;
};

using MakePlugin = std::function<std::unique_ptr<Plugin>()>;
struct Layout {
  std::string name;
  int world_size = 1;
  std::int64_t micro_steps = 1;
  MakePlugin plugin = {};  ///< empty: none, in one process
};

const std::vector<Layout>& layouts() {
  static const std::vector<Layout> kLayouts = {
      {"alone", 1, 4},
      {"ddp", 2, 2, [] { return std::make_unique<TorchDDPPlugin>(TorchDDPPlugin::Config{}); }},
      {"zero-1", 4, 1,
       [] {
         LowLevelZeroPlugin::Config config;
         config.precision = "fp32";
         return std::make_unique<LowLevelZeroPlugin>(config);
       }},
      {"zero-2", 2, 2,
       [] {
         LowLevelZeroPlugin::Config config;
         config.stage = 2;
         config.precision = "fp32";
         config.reduce_bucket_size_in_m = 0.002;
         return std::make_unique<LowLevelZeroPlugin>(config);
       }},
      {"gemini", 4, 1, [] {
         GeminiPlugin::Config config;
         config.precision = "fp32";
         config.min_chunk_size_m = 0.005;
         config.search_range_m = 0.002;
         config.hidden_dim = 64;
         config.offload_optim_frac = 0.5;
         return std::make_unique<GeminiPlugin>(config);
       }}};
  return kLayouts;
}

struct Task {
  OptimizerFactory optimizer;
  std::optional<ParamwiseConfig> paramwise = {};
  std::int64_t updates = 3;
  std::string resume_from = {}, save_as = {};
};

/// Every weight and state as they are saved, in f64; learning rates of all groups at the end.
struct Outcome {
  std::map<std::string, std::vector<float>> tensors;
  std::vector<double> rates;
  bool has_cut_parts = false;  ///< a rank stepped a part of a parameter
};

void put(Outcome& outcome, const std::string& name, std::int64_t whole, std::int64_t offset, const Tensor& piece) {
  std::vector<float>& all = outcome.tensors[name];
  all.resize(static_cast<std::size_t>(whole));
  const std::vector<float> values = cast(piece, DType::f32).to_vector<float>();
  std::copy(values.begin(), values.end(), all.begin() + offset);
}

Outcome train(const Layout& layout, const Task& task) {
  Outcome outcome;
  std::mutex mutex;
  const auto run = [&](ColossalAIStrategy& strategy) {
    PrepareOptions options;
    options.optimizer = task.optimizer;
    options.paramwise = task.paramwise;
    options.accumulative_counts = layout.micro_steps;
    options.dispatch.max_iters = 1000 * layout.micro_steps;
    options.dispatch.epoch_length = 6 * layout.micro_steps;
    options.param_schedulers.push_back([](const SchedulerContext& context) {
      ExponentialConfig config;
      config.gamma = 0.5;
      config.by_epoch = false;
      return std::make_unique<ExponentialLR>(context, config);
    });
    strategy.prepare([](const autograd::TensorOptions& tensor) { return std::make_shared<WideModel>(tensor); },
                     options);
    SamplerOptions loading;
    loading.seed = 3;
    loading.batch_size = 4;
    loading.world_size = strategy.world_size();
    loading.rank = strategy.rank();
    DataLoader loader(std::make_shared<test::CountedSamples>(), loading);
    if (!task.resume_from.empty()) {
      strategy.resume(task.resume_from);
      loader.seek({0, 3 * layout.micro_steps});
    }
    for (std::int64_t i = 0; i < task.updates * layout.micro_steps; ++i) {
      if (strategy.train_step(loader.next()).update.did_update) strategy.param_schedulers()[0]->step();
    }
    if (!task.save_as.empty()) strategy.save_checkpoint(task.save_as);
    std::map<std::string, Tensor> weights;  // reading one may gather it: all ranks do
    for (const auto& [name, variable] : strategy.model().named_parameters()) weights[name] = clone(variable.data());
    const std::lock_guard lock(mutex);
    for (const auto& [name, weight] : weights) put(outcome, name, weight.numel(), 0, weight);
    for (const auto& [name, state] : strategy.optim_wrapper()->stepper().named_states())
      put(outcome, name, state.shape.numel(), state.offset, state.tensor);
    for (const autograd::Part& part : strategy.optim_wrapper()->stepper().parts())
      outcome.has_cut_parts |= part.count > 0 && !part.is_whole();
    outcome.rates.clear();
    for (const autograd::ParamGroup& group : strategy.optim_wrapper()->optimizer().groups()) {
      const auto lr = group.values.find("lr");
      if (lr != group.values.end()) outcome.rates.push_back(lr->second);
    }
  };
  if (!layout.plugin) {
    ColossalAIStrategy strategy(kCpu, 7, {});
    run(strategy);
  } else {
    dist::run_ranks(layout.world_size, [&](dist::Comm& comm) {
      ColossalAIStrategy strategy(kCpu, 7, {}, layout.plugin(), comm);
      run(strategy);
    });
  }
  return outcome;
}

template <class O, class Config>
std::pair<const char*, OptimizerFactory> with(const char* name, Config config) {
  return {name, [config] { return std::make_unique<O>(config); }};
}

std::vector<std::pair<const char*, OptimizerFactory>> optimizers() {
  autograd::SGDConfig sgd;
  sgd.lr = 0.1;
  sgd.momentum = 0.9;
  sgd.weight_decay = 0.1;
  sgd.wd_after_momentum = true;
  autograd::AdafactorConfig adafactor;
  adafactor.lr = 0.01;
  adafactor.relative_step = false;
  autograd::LarsConfig lars;
  lars.lr = 1;
  lars.momentum = 0.9;
  lars.eeta = 0.02;
  autograd::CAMEConfig came;
  came.lr = 1e-3;
  autograd::RMSpropConfig rmsprop;
  rmsprop.centered = true;
  rmsprop.momentum = 0.5;
  autograd::FusedLAMBConfig fused_lamb;
  fused_lamb.max_grad_norm = 0.1;
  autograd::AdamW8bitConfig adam8bit;
  adam8bit.lr = 1e-2;
  adam8bit.min_8bit_size = 600;
  autograd::LionConfig lion;
  lion.weight_decay = 0.1;
  return {with<autograd::SGD>("FusedSGD", sgd),
          {"HybridAdam", [] { return autograd::make_hybrid_adam({}); }},
          with<autograd::Lamb>("Lamb", autograd::LambConfig{}),
          with<autograd::FusedLAMB>("FusedLAMB", fused_lamb),
          with<autograd::Lars>("Lars", lars),
          with<autograd::Adafactor>("Adafactor", adafactor),
          with<autograd::CAME>("CAME", came),
          with<autograd::Adagrad>("Adagrad", autograd::AdagradConfig{}),
          with<autograd::RMSprop>("RMSprop", rmsprop),
          with<autograd::Lion>("Lion", lion),
          with<autograd::AdamW8bit>("AdamW8bit", adam8bit)};
}

}  // namespace

TEST_CASE("every optimizer has the bits of one process under every plugin") {
  for (const auto& [name, optimizer] : optimizers()) {
    CAPTURE(name);
    const Task task{optimizer};
    const Outcome expected = train(layouts()[0], task);
    for (std::size_t i = 1; i < layouts().size(); ++i) {
      CAPTURE(layouts()[i].name);
      const Outcome got = train(layouts()[i], task);
      CHECK(got.tensors == expected.tensors);
      CHECK(got.has_cut_parts == (layouts()[i].name != "ddp"));
    }
  }
}

TEST_CASE("every optimizer's states move between layouts with a checkpoint") {
  const std::size_t others[][2] = {{2, 4}, {4, 0}, {0, 3}, {3, 2}, {1, 4}};
  std::size_t next = 0;
  for (const auto& [name, optimizer] : optimizers()) {
    CAPTURE(name);
    const test::TempDir folder;
    Task whole{optimizer}, first{optimizer}, rest{optimizer};
    whole.updates = 6;
    first.save_as = rest.resume_from = (folder.path() / "iter_3").string();
    const Outcome expected = train(layouts()[0], whole);
    const auto [before, after] = others[next++ % std::size(others)];
    CAPTURE(layouts()[before].name);
    CAPTURE(layouts()[after].name);
    train(layouts()[before], first);
    CHECK(train(layouts()[after], rest).tensors == expected.tensors);
  }
}

TEST_CASE("several groups of parameters train, are scheduled and resumed under every plugin") {
  Task task{[] {
    autograd::AdamWConfig config;
    config.lr = 1e-2;
    config.weight_decay = 0.5;
    return std::make_unique<autograd::AdamW>(config);
  }};
  const Outcome plain = train(layouts()[0], task);
  ParamwiseConfig paramwise;
  paramwise.custom_keys = {{"last", {0.1, 1}}, {"first.weight", {0, 0}}};
  paramwise.norm_decay_mult = 0;
  paramwise.bias_lr_mult = 2;
  task.paramwise = paramwise;
  const test::TempDir folder;
  Task first = task, rest = task;
  first.save_as = rest.resume_from = (folder.path() / "iter_3").string();
  Task whole = task;
  whole.updates = 6;
  const Outcome expected = train(layouts()[0], task), longer = train(layouts()[0], whole);
  // Half the rate after each of three updates, in the ratios of the config: the base, then groups as they are met.
  REQUIRE(expected.rates.size() == 5);
  const double base = 1e-2 / 8;
  for (std::size_t i = 0; i < 5; ++i) {
    const double ratios[] = {1, 0, 2, 1, 0.1};
    CHECK(expected.rates[i] == doctest::Approx(base * ratios[i]));
  }
  CHECK(expected.tensors != plain.tensors);
  CHECK(expected.tensors.at("first.weight") != plain.tensors.at("first.weight"));
  for (const Layout& layout : layouts()) {
    CAPTURE(layout.name);
    const Outcome got = train(layout, first);
    CHECK(got.tensors == expected.tensors);
    CHECK(got.rates == expected.rates);
    const Layout& other = layouts()[(static_cast<std::size_t>(&layout - layouts().data()) + 2) % layouts().size()];
    CHECK(train(other, rest).tensors == longer.tensors);
  }
  rest.paramwise->norm_decay_mult = 0.5;
  CHECK_THROWS_WITH_AS(train(layouts()[0], rest), doctest::Contains("paramwise_cfg"), FormatError);
}
