// Booster: a loop of a program's own has the strategy's bits under every plugin; what it saves is loaded by other tools
// and under other plugins; what it cannot do is refused with what to do instead.
#include "strategy/booster.h"

#include <algorithm>
#include <filesystem>
#include <mutex>

#include <doctest/doctest.h>

#include "autograd/optim/adam.h"
#include "autograd/optim/sgd.h"
#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/log.h"
#include "core/ops/cast.h"
#include "dist/comm_thread.h"
#include "formats/export_weights.h"
#include "strategy/colossalai_strategy.h"
#include "strategy/ddp/torch_ddp_plugin.h"
#include "strategy/scheduler.h"
#include "tests/support/mixed_model.h"
#include "tests/support/rank_training.h"
#include "tests/support/recording_comm.h"
#include "tests/support/temp_dir.h"

namespace castor::strategy {
namespace {

using test::CountedSamples;
using test::MakePlugin;
using test::MixedModel;

constexpr std::uint64_t kSeed = 7;

const ModelFactory kMixed = [](const autograd::TensorOptions& options) {
  return std::make_shared<MixedModel>(options);
};

SchedulerFactory decay() {
  return [](const SchedulerContext& context) {
    ExponentialLR::Config config;
    config.gamma = 0.9;
    config.by_epoch = false;
    return std::make_unique<ExponentialLR>(context, config);
  };
}

SamplerOptions loading() {
  SamplerOptions options;
  options.seed = 3;
  options.batch_size = 4;
  return options;
}

using Weights = std::map<std::string, std::vector<float>>;

/// All ranks call it: reading a weight may gather it.
Weights weights_of_module(autograd::TrainableModel& module) {
  Weights weights;
  for (const auto& [name, variable] : module.named_parameters())
    weights[name] = cast(variable.data(), DType::f32).to_vector<float>();
  for (const auto& [name, variable] : module.named_buffers())
    weights[name] = cast(variable.data(), DType::f32).to_vector<float>();
  return weights;
}

BoosterOptions booster_options(Precision precision, const MakePlugin& plugin, dist::Comm* comm) {
  BoosterOptions options;
  options.seed = kSeed;
  options.mixed_precision = MixedPrecision(precision);
  if (plugin) options.plugin = plugin();
  options.comm = comm;
  return options;
}

/// Updates [from, to) of a run on Booster alone, two micro-steps each.
void loop(Booster& booster, Boosted& run, int from, int to) {
  const auto loader = booster.prepare_dataloader(std::make_shared<CountedSamples>(), loading());
  loader->seek({2 * from / loader->length(), 2 * from % loader->length()});
  for (int update = from; update < to; ++update) {
    for (int i = 0; i < 2; ++i) {
      const auto losses = run.model->loss(loader->next());
      booster.backward(autograd::total_loss(losses), *run.optimizer);
    }
    const UpdateResult result = run.optimizer->step();
    CHECK(result.did_update);
    for (auto& scheduler : run.lr_schedulers) scheduler->step();
  }
}

BoostOptions boost_options() {
  BoostOptions options;
  options.optimizer = test::make_adamw;
  options.param_schedulers = {decay()};
  options.accumulative_counts = 2;
  return options;
}

/// On `world_size` threads, or for an empty plugin on none.
void on_ranks(int world_size, const MakePlugin& plugin, const std::function<void(dist::Comm*)>& fn) {
  if (!plugin) return fn(nullptr);
  dist::run_ranks(world_size, [&](dist::Comm& comm) { fn(&comm); });
}

Weights by_loop(Precision precision, int world_size, const MakePlugin& plugin) {
  Weights result;
  on_ranks(world_size, plugin, [&](dist::Comm* comm) {
    Booster booster(booster_options(precision, plugin, comm));
    Boosted run = booster.boost(kMixed, boost_options());
    loop(booster, run, 0, 4);
    const Weights weights = weights_of_module(run.model->module());
    if (booster.rank() == 0) result = weights;
  });
  return result;
}

Weights by_strategy(Precision precision, int world_size, const MakePlugin& plugin) {
  Weights result;
  on_ranks(world_size, plugin, [&](dist::Comm* comm) {
    ColossalAIStrategy strategy(kCpu, kSeed, {}, plugin ? plugin() : nullptr, comm, MixedPrecision(precision), {});
    PrepareOptions options;
    static_cast<BoostOptions&>(options) = boost_options();
    options.dispatch.max_iters = 1000;
    strategy.prepare(kMixed, options);
    const auto loader = strategy.booster().prepare_dataloader(std::make_shared<CountedSamples>(), loading());
    for (int i = 0; i < 8; ++i) {
      if (strategy.train_step(loader->next()).update.did_update) {
        for (auto& scheduler : strategy.param_schedulers()) scheduler->step();
      }
    }
    const Weights weights = weights_of_module(strategy.model());
    if (strategy.rank() == 0) result = weights;
  });
  return result;
}

std::vector<std::pair<std::string, MakePlugin>> plugins(Precision precision) {
  return {{"none", {}},
          {"ddp", test::ddp(0.01)},
          {"zero-1", test::zero(1, precision, 0.0003)},
          {"zero-2", test::zero(2, precision, 0.0003)},
          {"gemini", test::gemini(precision)}};
}

/// A model whose weights take some MiB.
class WideModel final : public autograd::TrainableModel {
 public:
  explicit WideModel(const autograd::TensorOptions& options)
      : first_(8, 60000, {.tensor = options}), second_(60000, 3, {.tensor = options}) {
    register_module("first", first_);
    register_module("second", second_);
  }
  autograd::Variable forward(const Tensor& inputs) override {
    return second_.forward(first_.forward(autograd::Variable(inputs)));
  }
  std::map<std::string, autograd::Variable> loss(const autograd::Batch& batch) override {
    return {{"loss", autograd::cross_entropy(forward(batch.inputs), batch.targets)}};
  }

 private:
  autograd::Linear first_, second_;
};

/// A message's error, or "".
template <class Fn>
std::string refusal(const Fn& fn) {
  try {
    fn();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

TEST_CASE("a window longer than announced is refused where sums are not kept, and trains where nothing was announced") {
  for (const bool is_ddp : {false, true}) {
    const MakePlugin plugin = [is_ddp]() -> std::unique_ptr<Plugin> {
      if (is_ddp) return std::make_unique<TorchDDPPlugin>(TorchDDPPlugin::Config{});
      return std::make_unique<LowLevelZeroPlugin>(LowLevelZeroPlugin::Config{});
    };
    on_ranks(2, plugin, [&](dist::Comm* comm) {
      Booster booster(booster_options(is_ddp ? Precision::fp32 : Precision::fp16, plugin, comm));
      BoostOptions options = boost_options();
      for (const std::int64_t announced : {1, 0, 2}) {
        CAPTURE(announced);
        options.accumulative_counts = announced;
        Boosted run = booster.boost(kMixed, options);
        if (announced != 1) {
          loop(booster, run, 0, 1);
        } else {
          CHECK_THROWS_WITH_AS(loop(booster, run, 0, 1), doctest::Contains("accumulative_counts"), ConfigError);
        }
      }
    });
  }
}

TEST_CASE("a loop on Booster has the bits of the strategy, alone and on ranks, under every plugin") {
  for (const Precision precision : {Precision::fp32, Precision::bf16}) {
    for (const auto& [name, plugin] : plugins(precision)) {
      CAPTURE(name);
      const Weights alone = by_loop(precision, 1, plugin);
      CHECK(alone == by_strategy(precision, 1, plugin));
      if (plugin) CHECK(by_loop(precision, 2, plugin) == by_strategy(precision, 2, plugin));
      CHECK(alone == by_loop(precision, 1, {}));
    }
  }
}

TEST_CASE("a run saved piece by piece goes on under another plugin with the bits of the undisturbed run") {
  for (const Precision precision : {Precision::fp32, Precision::bf16}) {
    for (const auto& [name, plugin] : plugins(precision)) {
      CAPTURE(name);
      const test::TempDir folder;
      const std::string weights = (folder.path() / "weights.safetensors").string(),
                        states = (folder.path() / "optimizer").string(),
                        schedule = (folder.path() / "lr.json").string();
      const int world_size = plugin ? 2 : 1;
      on_ranks(world_size, plugin, [&](dist::Comm* comm) {
        Booster booster(booster_options(precision, plugin, comm));
        Boosted run = booster.boost(kMixed, boost_options());
        loop(booster, run, 0, 2);
        for (const bool use_async : {false, true}) {  // the second replaces the first
          SaveModelOptions saving;
          saving.use_async = use_async;
          booster.save_model(*run.model, weights, saving);
          booster.save_optimizer(*run.optimizer, states, use_async);
          booster.save_lr_scheduler(*run.lr_schedulers.front(), schedule);
        }
        loop(booster, run, 2, 4);  // changes nothing of what is still being written
        booster.saver().wait();
      });
      std::vector<std::string> left;
      for (const auto& entry : std::filesystem::directory_iterator(folder.path()))
        left.push_back(entry.path().filename().string());
      std::sort(left.begin(), left.end());
      CHECK(left == std::vector<std::string>{"lr.json", "optimizer", "weights.safetensors"});
      for (const auto& [other_name, other] : plugins(precision)) {
        CAPTURE(other_name);
        Weights resumed, whole;
        on_ranks(world_size, other, [&](dist::Comm* comm) {
          const int ranks = comm == nullptr ? 1 : comm->world_size();
          if (ranks != world_size) return;  // other micro-batches
          Booster booster(booster_options(precision, other, comm));
          Boosted run = booster.boost(kMixed, boost_options());
          booster.load_model(*run.model, weights);
          booster.load_optimizer(*run.optimizer, states);
          booster.load_lr_scheduler(*run.lr_schedulers.front(), schedule);
          loop(booster, run, 2, 4);
          const Weights found = weights_of_module(run.model->module());
          if (booster.rank() == 0) resumed = found;
        });
        if (resumed.empty()) continue;
        CHECK(resumed == by_loop(precision, world_size, plugin));
      }
    }
  }
}

TEST_CASE("save_model with shard writes files of size_per_shard and their index, in the dtype that is asked for") {
  const test::TempDir folder;
  const std::string sharded = (folder.path() / "sharded").string(), one = (folder.path() / "one").string();
  const MakePlugin plugin = test::gemini(Precision::bf16);
  const ModelFactory wide = [](const autograd::TensorOptions& options) { return std::make_shared<WideModel>(options); };
  dist::run_ranks(2, [&](dist::Comm& comm) {
    Booster booster(booster_options(Precision::bf16, plugin, &comm));
    BoostOptions options = boost_options();
    Boosted run = booster.boost(wide, options);
    SaveModelOptions saving;
    saving.shard = true;
    saving.size_per_shard = 1;
    booster.save_model(*run.model, sharded, saving);
    saving.shard = false;
    saving.dtype = DType::bf16;
    booster.save_model(*run.model, one, saving);
  });
  CHECK(exists(join_path(sharded, formats::kExportIndexName)));
  const formats::TensorSource pieces = formats::open_tensor_source(sharded);
  CHECK(pieces.files.size() >= 2);
  // f32 masters, since nothing else was asked for.
  CHECK(pieces.bytes() == 4 * (8 * 60000 + 60000 + 3 * 60000 + 3));
  CHECK(formats::open_tensor_source(one).bytes() == 2 * (8 * 60000 + 60000 + 3 * 60000 + 3));

  Booster alone(booster_options(Precision::fp32, {}, nullptr));
  Boosted plain = alone.boost(wide);
  const Weights before = weights_of_module(plain.model->module());
  plain.model->module().named_parameters().front().second.data().fill_zero();
  CHECK(alone.load_model(*plain.model, sharded).loaded == 4);
  // Both were filled from one seed, and the masters of the sharded one were rounded once, to bf16.
  CHECK(weights_of_module(plain.model->module()).at("second.bias")[0] ==
        doctest::Approx(before.at("second.bias")[0]).epsilon(0.01));
}

TEST_CASE("save_model replaces earlier exports alone, whatever slashes its path ends with") {
  const test::TempDir folder;
  const auto in = [&folder](const char* name) { return (folder.path() / name).string(); };
  Booster booster(booster_options(Precision::fp32, {}, nullptr));
  const Boosted run = booster.boost(kMixed);
  const auto names = [](const std::string& path) {
    std::vector<std::string> found;
    for (const DirectoryEntry& entry : list_directory(path)) found.push_back(entry.name);
    return found;
  };
  for (const bool is_async : {false, true}) {
    for (const char* slashes : {"", "/", "//"}) {
      SaveModelOptions saving;
      saving.use_async = is_async;
      saving.shard = true;
      booster.save_model(*run.model, in("sharded") + slashes, saving);
      saving.shard = false;
      booster.save_model(*run.model, in("one") + slashes, saving);
      booster.saver().wait();
      CHECK(names(folder.path().string()) == std::vector<std::string>{"one", "sharded"});
      CHECK(names(in("sharded")) == std::vector<std::string>{formats::kExportName});
      CHECK(booster.load_model(*run.model, in("one")).fits());
      CHECK(booster.load_model(*run.model, in("sharded")).fits());
    }
  }
  // As a crash between two renames leaves it.
  rename_file(in("sharded"), in("sharded.replaced"));
  CHECK(booster.load_model(*run.model, in("sharded") + "/").fits());
  SaveModelOptions sharded;
  sharded.shard = true;
  booster.save_model(*run.model, in("sharded"), sharded);
  CHECK(names(folder.path().string()) == std::vector<std::string>{"one", "sharded"});

  // What is no export of ours is not touched.
  make_directories(in("project/src"));
  write_file_atomically(in("project/notes.txt"), std::string_view("a year's work"));
  write_file_atomically(in("sharded/config.json"), std::string_view("{}"));
  const std::vector<std::string> all = names(folder.path().string());
  for (const bool shard : {false, true}) {
    for (const char* path : {"project", "project/", "sharded", "sharded/"}) {
      CAPTURE(shard);
      CAPTURE(path);
      SaveModelOptions saving;
      saving.shard = shard;
      CHECK_THROWS_WITH_AS(booster.save_model(*run.model, in(path), saving), doctest::Contains("folder"), IoError);
    }
  }
  CHECK_THROWS_WITH_AS(booster.save_model(*run.model, in("one"), sharded), doctest::Contains("this is a file"),
                       IoError);
  CHECK_THROWS_WITH_AS(booster.save_model(*run.model, "/"), doctest::Contains("expected the name"), ConfigError);
  CHECK_THROWS_WITH_AS(booster.save_model(*run.model, in("project/..")), doctest::Contains("expected the name"),
                       ConfigError);
  CHECK(names(folder.path().string()) == all);
  CHECK(names(in("project")) == std::vector<std::string>{"notes.txt", "src"});
  CHECK(names(in("sharded")) == std::vector<std::string>{"config.json", formats::kExportName});
}

TEST_CASE("load_model insists that everything fits, unless it is told not to") {
  const test::TempDir folder;
  const std::string path = (folder.path() / "weights.safetensors").string();
  Booster booster(booster_options(Precision::fp32, {}, nullptr));
  const Boosted without = booster.boost(
      [](const autograd::TensorOptions& options) { return std::make_shared<MixedModel>(options, false); });
  booster.save_model(*without.model, path);
  const Boosted whole = booster.boost(kMixed);
  CHECK_THROWS_WITH_AS(booster.load_model(*whole.model, path), doctest::Contains("missing: unused.weight"),
                       FormatError);
  const LoadReport report = booster.load_model(*whole.model, path, false);
  CHECK(report.missing == std::vector<std::string>{"unused.weight", "unused.bias"});
}

TEST_CASE("gradients that wait under no_sync meet once, with those of the last backward") {
  const auto train = [](const MakePlugin& plugin, bool waits, std::string& trace) {
    Weights result;
    std::mutex mutex;
    dist::run_ranks(2, [&](dist::Comm& inner) {
      LogOptions quiet;
      quiet.level = LogLevel::kError;
      Logger logger(quiet);
      const LogScope scope(logger);
      test::RecordingComm comm(inner);
      Booster booster(booster_options(Precision::fp32, plugin, &comm));
      BoostOptions options;
      options.optimizer = [] {  // not Adam, which makes steps of rounding errors where a gradient is zero
        autograd::SGDConfig config;
        config.lr = 0.1;
        return std::make_unique<autograd::SGD>(config);
      };
      Boosted run = booster.boost(kMixed, options);
      const auto loader = booster.prepare_dataloader(std::make_shared<CountedSamples>(), loading());
      for (int update = 0; update < 2; ++update) {
        for (int i = 0; i < 3; ++i) {
          const auto losses = run.model->loss(loader->next());
          if (waits && i < 2) {
            const NoSync waiting = booster.no_sync(*run.model, *run.optimizer);
            booster.backward(losses.at("loss"), *run.optimizer);
          } else {
            booster.backward(losses.at("loss"), *run.optimizer);
          }
        }
        run.optimizer->step();
      }
      const Weights weights = weights_of_module(run.model->module());
      const std::lock_guard lock(mutex);
      if (inner.rank() != 0) return;
      result = weights;
      trace = comm.text();
    });
    return result;
  };
  const auto exchanges = [](const std::string& trace) {
    std::size_t count = 0;
    for (std::size_t at = trace.find("started reduce_scatter"); at != std::string::npos;
         at = trace.find("started reduce_scatter", at + 1))
      ++count;
    return count;
  };
  for (const auto& [name, plugin] : plugins(Precision::fp32)) {
    if (name != "ddp" && name != "zero-1") continue;
    CAPTURE(name);
    std::string always, once;
    const Weights synced = train(plugin, false, always), waited = train(plugin, true, once);
    CHECK(exchanges(once) > 0);
    CHECK(exchanges(always) == 3 * exchanges(once));
    // The same sums in another order.
    for (const auto& [weight, values] : synced) {
      for (std::size_t i = 0; i < values.size(); ++i)
        CHECK(waited.at(weight)[i] == doctest::Approx(values[i]).epsilon(1e-3));
    }
  }
}

TEST_CASE("no_sync is refused where gradients have no place to wait, and a window cannot end inside it") {
  dist::run_ranks(1, [](dist::Comm& comm) {
    for (const auto& [name, plugin] : plugins(Precision::fp32)) {
      if (name != "zero-2" && name != "gemini") continue;
      Booster booster(booster_options(Precision::fp32, plugin, &comm));
      Boosted run = booster.boost(kMixed, boost_options());
      const std::string text = refusal([&] { const NoSync none = booster.no_sync(*run.model, *run.optimizer); });
      CHECK(text.find(name == "gemini" ? "GeminiPlugin" : "LowLevelZeroPlugin") != std::string::npos);
      CHECK(text.find("TorchDDPPlugin and LowLevelZeroPlugin's stage 1") != std::string::npos);
    }
    Booster booster(booster_options(Precision::fp32, test::ddp(), &comm));
    Boosted run = booster.boost(kMixed, boost_options());
    Boosted other = booster.boost(kMixed, boost_options());
    CHECK(refusal([&] { const NoSync none = booster.no_sync(*run.model, *other.optimizer); }) != "");
    const auto loader = booster.prepare_dataloader(std::make_shared<CountedSamples>(), loading());
    const auto losses = run.model->loss(loader->next());
    {
      const NoSync waiting = booster.no_sync(*run.model, *run.optimizer);
      booster.backward(losses.at("loss"), *run.optimizer);
    }
    CHECK_THROWS_WITH_AS(run.optimizer->step(), doctest::Contains("inside no_sync"), InternalError);
    CHECK_THROWS_WITH_AS(other.optimizer->step(), doctest::Contains("call backward first"), InternalError);
  });
}

TEST_CASE("what Booster cannot do is refused, naming what exists") {
  Booster booster(booster_options(Precision::fp32, {}, nullptr));
  Boosted run = booster.boost(kMixed);
  CHECK(refusal([&] { booster.execute_pipeline(); }).find("GeminiPlugin") != std::string::npos);
  CHECK(refusal([&] { booster.enable_lora(); }).find("set_requires_grad(false)") != std::string::npos);
  SaveModelOptions pickle;
  pickle.use_safetensors = false;
  CHECK(refusal([&] { booster.save_model(*run.model, "x", pickle); }).find("safetensors") != std::string::npos);
  SaveModelOptions empty;
  empty.size_per_shard = 0;
  CHECK(refusal([&] { booster.save_model(*run.model, "x", empty); }).find("at least 1 MiB, got 0") !=
        std::string::npos);
  CHECK(refusal([] { Booster(booster_options(Precision::fp32, test::ddp(), nullptr)); }).find("dist::Job") !=
        std::string::npos);
  CHECK(refusal([&] {
          BoostOptions options;
          options.param_schedulers = {decay()};
          booster.boost(kMixed, options);
        }).find("needs an optim_wrapper") != std::string::npos);
  const auto batch = CountedSamples().batch(std::vector<std::int64_t>{0, 1});
  CHECK_THROWS_WITH_AS(run.model->loss(batch), doctest::Contains("without an optimizer"), InternalError);
  CHECK(run.model->predict(batch).shape() == Shape{2, 3});
  dist::run_ranks(2, [](dist::Comm& comm) {
    CHECK(refusal([&] { Booster(booster_options(Precision::fp32, {}, &comm)); }).find("choose a plugin") !=
          std::string::npos);
  });
  dist::run_ranks(1, [](dist::Comm& comm) {
    CHECK(refusal([&] {
            Booster(booster_options(Precision::bf16, test::zero(1, Precision::fp32), &comm));
          }).find("give one of them") != std::string::npos);
  });
}

TEST_CASE("an optimizer's states are not saved inside a window, nor loaded from what holds none") {
  const test::TempDir folder;
  Booster booster(booster_options(Precision::fp32, {}, nullptr));
  Boosted run = booster.boost(kMixed, boost_options());
  const std::string weights = (folder.path() / "weights.safetensors").string();
  booster.save_model(*run.model, weights);
  CHECK_THROWS_WITH_AS(booster.load_optimizer(*run.optimizer, weights), doctest::Contains("holds no optimizer"),
                       FormatError);
  const auto loader = booster.prepare_dataloader(std::make_shared<CountedSamples>(), loading());
  booster.backward(run.model->loss(loader->next()).at("loss"), *run.optimizer);
  CHECK_THROWS_WITH_AS(booster.save_optimizer(*run.optimizer, (folder.path() / "states").string()),
                       doctest::Contains("save after step"), InternalError);
}

}  // namespace
}  // namespace castor::strategy
