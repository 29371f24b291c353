// Threads as ranks, and putting their pieces together.
#include "tests/support/rank_training.h"

#include <chrono>
#include <cmath>
#include <filesystem>
#include <mutex>

#include <doctest/doctest.h>

#include "autograd/optim/adam.h"
#include "core/base/log.h"
#include "core/device/backend.h"
#include "core/ops/cast.h"
#include "dist/comm_device.h"
#include "dist/comm_thread.h"
#include "strategy/colossalai_strategy.h"
#include "strategy/data/data_loader.h"
#include "strategy/ddp/torch_ddp_plugin.h"
#include "tests/support/mixed_model.h"

namespace castor::test {

using namespace castor::strategy;

namespace {

constexpr std::int64_t kEnough = 1000;  // windows: the run ends before the last one of max_iters

/// Listens to the losses of another model, unless its passes are recorded: then nobody may wait for them.
class HeardModel final : public autograd::TrainableModel {
 public:
  HeardModel(std::shared_ptr<autograd::TrainableModel> model, bool listens)
      : model_(std::move(model)), listens_(listens) {
    register_module("model", model_);
  }
  autograd::Variable forward(const Tensor& inputs) override { return model_->forward(inputs); }
  std::map<std::string, autograd::Variable> loss(const autograd::Batch& batch) override {
    auto losses = model_->loss(batch);
    if (listens_) heard_.push_back(losses.at("loss").data().item());
    return losses;
  }
  const std::vector<double>& heard() const { return heard_; }

 private:
  std::shared_ptr<autograd::TrainableModel> model_;
  bool listens_;
  std::vector<double> heard_;
};

std::vector<float> floats(const Tensor& x) { return cast(x, DType::f32).to_vector<float>(); }

/// Puts a piece where it belongs. What several ranks have must be equal.
void put(std::map<std::string, std::vector<float>>& into, const std::string& name, std::int64_t whole,
         std::int64_t offset, const std::vector<float>& piece) {
  std::vector<float>& all = into[name];
  all.resize(static_cast<std::size_t>(whole), std::nanf(""));
  for (std::size_t i = 0; i < piece.size(); ++i) {
    float& place = all[static_cast<std::size_t>(offset) + i];
    CHECK((std::isnan(place) || place == piece[i]));
    place = piece[i];
  }
}

void run_rank(ColossalAIStrategy& strategy, std::int64_t micro_steps, const Task& task, Outcome& outcome,
              std::mutex& mutex) {
  LogOptions only_warnings;  // not every skipped step
  only_warnings.level = LogLevel::kWarning;
  Logger logger(only_warnings);
  const LogScope scope(logger);
  const std::int64_t world_size = strategy.world_size();
  const std::int64_t before = task.resume_from.empty() ? 0 : task.resumed_updates * micro_steps;
  std::int64_t steps = task.updates * micro_steps;
  if (task.remainder > 0) {
    REQUIRE(task.remainder % world_size == 0);
    steps += task.remainder / world_size - micro_steps;
  }
  PrepareOptions options;
  options.optimizer = task.optimizer;
  options.accumulative_counts = micro_steps;
  options.compile = task.compile;
  options.clip = ClipConfig{};
  options.clip->max_norm = task.max_norm;
  options.dispatch.max_iters = task.remainder > 0 ? before + steps : kEnough * micro_steps;
  strategy.prepare(
      [&](const autograd::TensorOptions& tensor) {
        return std::make_shared<HeardModel>(task.model ? task.model(tensor) : std::make_shared<MixedModel>(tensor),
                                            !task.compile);
      },
      options);
  SamplerOptions loading;
  loading.seed = 3;
  loading.batch_size = task.batch_size;
  loading.world_size = world_size;
  loading.rank = strategy.rank();
  DataLoader loader(task.samples ? task.samples : std::make_shared<CountedSamples>(), loading);
  if (!task.resume_from.empty()) {
    strategy.resume(task.resume_from);
    CHECK(strategy.optim_wrapper()->inner_count() == before);
    loader.seek({before / loader.length(), before % loader.length()});
  }
  std::vector<double> norms, logged;
  for (std::int64_t i = 0; i < steps; ++i) {
    const StepResult step = strategy.train_step(loader.next());
    logged.push_back(step.losses.at("loss"));
    if (step.update.did_update) norms.push_back(step.update.was_skipped ? -1 : *step.update.grad_norm);
  }
  CHECK(static_cast<std::int64_t>(norms.size()) == task.updates);
  if (!task.save_as.empty()) strategy.save_checkpoint(task.save_as);
  std::map<std::string, std::vector<float>> weights;  // reading one may gather it: all ranks do
  for (const auto& [name, variable] : strategy.model().named_parameters()) weights[name] = floats(variable.data());
  const std::lock_guard lock(mutex);
  for (const auto& [name, values] : weights)
    put(outcome.tensors, name, static_cast<std::int64_t>(values.size()), 0, values);
  for (const auto& [name, variable] : strategy.model().named_buffers())
    put(outcome.tensors, name, variable.data().numel(), 0, floats(variable.data()));
  for (const auto& [name, state] : strategy.optim_wrapper()->stepper().named_states())
    put(outcome.tensors, name, state.shape.numel(), state.offset, floats(state.tensor));
  const std::vector<double>& heard = task.compile ? logged : dynamic_cast<const HeardModel&>(strategy.model()).heard();
  outcome.losses.resize(heard.size() * static_cast<std::size_t>(world_size));
  for (std::size_t i = 0; i < heard.size(); ++i)
    outcome.losses[i * static_cast<std::size_t>(world_size) + static_cast<std::size_t>(strategy.rank())] = heard[i];
  if (strategy.rank() == 0) {
    outcome.grad_norms = norms;
    if (const autograd::GradScaler* scaler = strategy.optim_wrapper()->grad_scaler())
      outcome.skipped = scaler->state().skipped;
  }
}

}  // namespace

std::unique_ptr<autograd::Optimizer> make_adamw() {
  autograd::AdamWConfig config;
  config.lr = 1e-2;
  return std::make_unique<autograd::AdamW>(config);
}

Outcome train(const Layout& layout, const Task& task) {
  constexpr std::chrono::seconds kTimeout{60};
  Outcome outcome;
  std::mutex mutex;
  const auto device_of = [&](int rank) {
    return task.on_gpus ? Device{DeviceType::cuda, static_cast<std::int16_t>(rank)} : kCpu;
  };
  if (!layout.plugin) {
    ColossalAIStrategy strategy(device_of(0), task.seed, {}, task.precision);
    run_rank(strategy, layout.micro_steps, task, outcome, mutex);
  } else {
    dist::run_ranks(layout.world_size, [&](dist::Comm& comm) {
      const Device device = device_of(comm.rank());
      dist::Health health;
      const auto gpus = task.on_gpus ? dist::make_device_comm(comm, device, health, {kTimeout}) : nullptr;
      {
        ColossalAIStrategy strategy(device, task.seed, {}, layout.plugin(), gpus ? *gpus : comm, task.precision);
        run_rank(strategy, layout.micro_steps, task, outcome, mutex);
      }
      backend(device).synchronize();
    });
  }
  for (const auto& [name, values] : outcome.tensors) {
    for (const float value : values) CHECK_FALSE_MESSAGE(std::isnan(value), name);
  }
  return outcome;
}

std::string differences(const Outcome& got, const Outcome& expected) {
  std::string text;
  const auto compare = [&](const std::string& name, const auto& a, const auto& b) {
    if (a.size() != b.size()) {
      text += cat(name, ": ", a.size(), " values, expected ", b.size(), "\n");
      return;
    }
    std::size_t count = 0, first = 0;
    for (std::size_t i = a.size(); i-- > 0;) {
      if (a[i] == b[i]) continue;
      ++count;
      first = i;
    }
    if (count > 0)
      text +=
          cat(name, ": ", count, " of ", a.size(), ", from ", first, " on: ", a[first], ", expected ", b[first], "\n");
  };
  compare("losses", got.losses, expected.losses);
  compare("grad_norms", got.grad_norms, expected.grad_norms);
  for (const auto& [name, values] : expected.tensors) {
    const auto found = got.tensors.find(name);
    compare(name, found == got.tensors.end() ? std::vector<float>{} : found->second, values);
  }
  return text;
}

Outcome after(Outcome whole, std::int64_t updates, std::int64_t micro_batches) {
  whole.grad_norms.erase(whole.grad_norms.begin(), whole.grad_norms.begin() + updates);
  whole.losses.erase(whole.losses.begin(), whole.losses.begin() + updates * micro_batches);
  return whole;
}

MakePlugin ddp(double bucket_cap_mb) {
  return [bucket_cap_mb] {
    TorchDDPPlugin::Config config;
    config.bucket_cap_mb = bucket_cap_mb;
    return std::make_unique<TorchDDPPlugin>(config);
  };
}

MakePlugin zero(std::int64_t stage, Precision precision, double bucket_in_m,
                const std::function<void(LowLevelZeroPlugin::Config&)>& change) {
  return [=] {
    LowLevelZeroPlugin::Config config;
    config.stage = stage;
    config.precision = precision_name(precision == Precision::fp16_apex ? Precision::fp16 : precision);
    config.reduce_bucket_size_in_m = bucket_in_m;
    config.grad_scaler = {};
    if (change) change(config);
    return std::make_unique<LowLevelZeroPlugin>(config);
  };
}

MakePlugin gemini(Precision precision, const std::function<void(GeminiPlugin::Config&)>& change) {
  return [=] {
    GeminiPlugin::Config config;
    config.precision = precision_name(precision == Precision::fp16_apex ? Precision::fp16 : precision);
    config.enable_gradient_accumulation = true;
    config.min_chunk_size_m = 0.0003;
    config.search_range_m = 0.0001;
    config.hidden_dim = 16;
    if (change) change(config);
    return std::make_unique<GeminiPlugin>(config);
  };
}

MakePlugin gemini_on_disk(Precision precision) {
  return gemini(precision, [](auto& c) {
    c.offload_optim_frac = 1;
    c.nvme_offload_fraction = 1;
    c.offload_param_frac = 1;
    c.nvme_offload_param_fraction = 0.5;
    c.nvme_offload_dir = std::filesystem::temp_directory_path().string();
  });
}

std::vector<std::pair<std::string, MakePlugin>> all_placements(Precision precision) {
  constexpr double kSmallBucket = 0.0003;
  return {{"ddp", ddp(0.01)},
          {"zero-1", zero(1, precision, kSmallBucket)},
          {"zero-2", zero(2, precision, kSmallBucket)},
          {"gemini, all sharded", gemini(precision)},
          {"gemini, all gathered", gemini(precision, [](auto& c) { c.shard_param_frac = 0; })},
          {"gemini, half of each, two ahead", gemini(precision,
                                                     [](auto& c) {
                                                       c.shard_param_frac = 0.5;
                                                       c.offload_optim_frac = 0.5;
                                                       c.offload_param_frac = 0.5;
                                                       c.max_prefetch = 2;
                                                     })},
          {"gemini, everything offloaded", gemini(precision,
                                                  [](auto& c) {
                                                    c.offload_optim_frac = 1;
                                                    c.offload_param_frac = 1;
                                                  })},
          {"gemini, auto", gemini(precision,
                                  [](auto& c) {
                                    c.placement_policy = "auto";
                                    c.device_memory_gib = 1e-5;
                                  })},
          {"gemini, disk", gemini_on_disk(precision)}};
}

}  // namespace castor::test
