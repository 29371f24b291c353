// The strategy as mmengine's users know it: every condition under which its ColossalAIStrategy raises has a typed error
// here, and the seams where that one breaks hold.
#include <functional>

#include <doctest/doctest.h>

#include "core/base/log.h"
#include "core/device/dispatch.h"
#include "core/ops/cast.h"
#include "dist/comm_thread.h"
#include "strategy/builtins.h"
#include "strategy/colossalai_strategy.h"
#include "strategy/config.h"
#include "strategy/config/text_source.h"
#include "strategy/runner/environment.h"
#include "strategy/runner/strategy_arguments.h"
#include "strategy/scheduler.h"
#include "tests/support/mixed_model.h"
#include "tests/support/rank_training.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_run.h"

namespace castor::strategy {
namespace {

const ModelFactory kMixed = [](const autograd::TensorOptions& options) {
  return std::make_shared<test::MixedModel>(options);
};

PrepareOptions training() {
  PrepareOptions options;
  options.optimizer = test::make_adamw;
  options.dispatch.max_iters = 10;
  return options;
}

autograd::Batch some_batch() { return test::CountedSamples().batch(std::vector<std::int64_t>{0, 1, 2, 3}); }

std::vector<float> weights(BaseStrategy& strategy) {
  std::vector<float> all;
  for (const auto& [name, variable] : strategy.model().named_parameters()) {
    const std::vector<float> values = cast(variable.data(), DType::f32).to_vector<float>();
    all.insert(all.end(), values.begin(), values.end());
  }
  return all;
}

/// The mistakes of the tiny config with these changes, or "".
std::string mistakes_of(const std::vector<std::string>& overrides) {
  Registry registry;
  test::add_tiny_types(registry);
  try {
    parse_runner_config(test::tiny_config("work", overrides), "tiny.yaml", registry);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

TEST_CASE("every config that mmengine's strategy raises for is a mistake of the config, with what to do") {
  const std::vector<std::pair<std::vector<std::string>, std::string>> wrong = {
      {{"optim_wrapper.type=MyOptimWrapper"}, "ColossalAIOptimWrapper"},
      {{"optim_wrapper.type=AmpOptimWrapper"}, "ColossalAIOptimWrapper"},
      {{"strategy.plugin=gemini", "optim_wrapper.clip_grad={max_norm: 1}"}, "set strategy.plugin.max_norm instead"},
      {{"strategy.plugin=lowlevel-zero", "optim_wrapper.clip_grad={max_norm: 1}"},
       "LowLevelZeroPlugin limits the norm itself"},
      {{"strategy.plugin=gemeni"}, "did you mean \"gemini\"?"},
      {{"strategy.plugin=3"}, "strategy.plugin"},
      {{"strategy.plugin={type: GeminiPlugin, placement_policy: cuda}"}, "static"},
      {{"strategy.mixed_precision=fp12"}, "fp16_apex"},
      {{"strategy.mixed_precision=16"}, "strategy.mixed_precision"},
      {{"strategy.model_wrapper={type: MMDistributedDataParallel}"}, "ColossalAIModelWrapper"},
      {{"optim_wrapper.accumulative_counts=0"}, ">= 1"},
      {{"data_preprocessor={type: X}"}, "data sets give what the model takes"},
      {{"launcher=ssh"}, "slurm"},
      {{"env_cfg.dist_cfg={timeout: soon}"}, "env_cfg.dist_cfg.timeout"},
      {{"compile=true", "strategy.plugin=gemini"}, "recorded without a plugin only"},
      {{"compile={disable: false}", "strategy.plugin=gemini"}, "recorded without a plugin only"},
      {{"compile={disable: true, target: loss}"}, "recorded together"},
      {{"compile={disable: true, backend: eager}"}, "compiled with the program"},
  };
  for (const auto& [changes, reason] : wrong) {
    const std::string text = mistakes_of(changes);
    INFO(changes.front());
    INFO(text);
    CHECK(text.starts_with("1 mistake in tiny.yaml:"));
    CHECK(text.find(reason) != std::string::npos);
  }
  CHECK(mistakes_of({"compile=true", "strategy.plugin=null"}) == "");
  for (const char* fine : {"compile=false", "compile={disable: true}", "compile={disable: true, target: forward}",
                           "optim_wrapper.clip_grad={type: value, clip_value: 1}"}) {
    CHECK_MESSAGE(mistakes_of({"strategy.plugin=gemini", fine}) == "", fine);
  }
  CHECK(mistakes_of({"strategy.plugin=TorchDDPPlugin", "optim_wrapper.clip_grad={max_norm: 1}"}) == "");
}

TEST_CASE("what only prepare can know is refused there") {
  const auto refusal = [](const std::function<void(PrepareOptions&)>& change) -> std::string {
    ColossalAIStrategy strategy(kCpu, 1);
    PrepareOptions options = training();
    change(options);
    try {
      strategy.prepare(kMixed, options);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "";
  };
  CHECK(refusal([](PrepareOptions& options) {
          options.accumulative_counts = 4;
          options.dispatch.max_iters.reset();
        }).find("give max_iters in dispatch_kwargs") != std::string::npos);
  CHECK(refusal([](PrepareOptions& options) { options.compile = true; }).find("recorded on GPUs only") !=
        std::string::npos);
  CHECK(refusal([](PrepareOptions& options) { options.compile = CompileConfig{}; }).find("recorded on GPUs only") !=
        std::string::npos);
  CHECK(refusal([](PrepareOptions& options) { options.compile = CompileConfig{.disable = true}; }) == "");
  CHECK(refusal([](PrepareOptions& options) {
          options.accumulative_counts = 0;
        }).find("accumulative_counts must be at least 1") != std::string::npos);

  ColossalAIStrategy early(kCpu, 1);
  CHECK_THROWS_WITH_AS(early.model(), doctest::Contains("call prepare"), InternalError);
  CHECK_THROWS_AS(early.val_step(some_batch()), InternalError);
  CHECK_THROWS_AS(early.train_step(some_batch()), InternalError);
}

TEST_CASE("two strategies in one process train side by side with the bits that each has alone") {
  const autograd::Batch batch = some_batch();
  const auto alone = [&](std::uint64_t seed) {
    ColossalAIStrategy strategy(kCpu, seed);
    strategy.prepare(kMixed, training());
    for (int i = 0; i < 3; ++i) strategy.train_step(batch);
    return weights(strategy);
  };
  ColossalAIStrategy first(kCpu, 1), second(kCpu, 2);
  first.prepare(kMixed, training());
  second.prepare(kMixed, training());
  for (int i = 0; i < 3; ++i) {
    first.train_step(batch);
    second.train_step(batch);
  }
  CHECK(weights(first) == alone(1));
  CHECK(weights(second) == alone(2));
}

TEST_CASE("load_or_resume loads, resumes, finds the newest or does nothing, as it is told") {
  const test::TempDir folder;
  const std::string work_dir = folder.path().string();
  const autograd::Batch batch = some_batch();
  ColossalAIStrategy saved(kCpu, 1);
  saved.prepare(kMixed, training());
  saved.train_step(batch);
  saved.save_checkpoint(work_dir + "/iter_1");
  const std::vector<float> after_one = weights(saved);
  saved.train_step(batch);
  saved.save_checkpoint(work_dir + "/iter_2");
  const std::vector<float> after_two = weights(saved);

  /// What a fresh run has then, and how many micro-steps it counts.
  const auto started = [&](const StartOptions& options, bool is_resumed) {
    ColossalAIStrategy strategy(kCpu, 9);
    strategy.prepare(kMixed, training());
    CHECK(strategy.load_or_resume(options).has_value() == is_resumed);
    return std::pair(weights(strategy), strategy.optim_wrapper()->inner_count());
  };
  using Start = std::pair<std::vector<float>, std::int64_t>;
  CHECK(started({.load_from = work_dir + "/iter_1"}, false) == Start(after_one, 0));
  CHECK(started({.load_from = work_dir + "/iter_1", .resume = true}, true) == Start(after_one, 1));
  CHECK(started({.resume = work_dir + "/iter_1"}, true) == Start(after_one, 1));
  CHECK(started({.resume = true, .work_dir = work_dir}, true) == Start(after_two, 2));
  const test::TempDir empty;
  CHECK(started({.resume = true, .work_dir = empty.path().string()}, false) == started({}, false));
  CHECK(started({}, false).first != after_one);
}

/// Counts ops.
class OpCounter final : public DispatchObserver {
 public:
  void before(const OpCall&) override { ++count; }
  int count = 0;
};

TEST_CASE("weights that are loaded next need not be filled first") {
  const auto ops_of_prepare = [](bool fills) {
    ColossalAIStrategy strategy(kCpu, 1);
    PrepareOptions options;
    options.dispatch.init_weights_for_test_or_val = fills;
    OpCounter counter;
    const ObserverScope observe(counter);
    strategy.prepare(kMixed, options);
    CHECK(strategy.model().named_parameters().front().second.name() == "first.weight");
    return counter.count;
  };
  CHECK(ops_of_prepare(true) > ops_of_prepare(false));
}

TEST_CASE("a step that overflows in fp16 counts as a micro-step and not as a step") {
  PrepareOptions options = training();
  ColossalAIStrategy strategy(kCpu, 1, {}, [] {
    MixedPrecision precision(Precision::fp16);
    precision.grad_scaler = autograd::GradScalerConfig{.initial_scale = 4294967296.0};
    return precision;
  }());
  strategy.prepare(kMixed, options);
  const StepResult step = strategy.train_step(some_batch());
  CHECK(step.update.was_skipped);
  CHECK(strategy.optim_wrapper()->stepper().step_count() == 0);
  CHECK(strategy.optim_wrapper()->inner_count() == 1);
}

TEST_CASE("rank 0 writes the log; with `distributed` every rank has one of its own beside it") {
  LogConfig config;
  const auto of_rank = [&](int rank) { return log_options(config, LogLevel::kInfo, "work", "20260131_235959", rank); };
  CHECK(of_rank(0).file == "work/20260131_235959/20260131_235959.log");
  CHECK(of_rank(0).level == LogLevel::kInfo);
  CHECK(of_rank(2).file.empty());
  CHECK(of_rank(2).level == LogLevel::kWarning);
  config.distributed = true;
  CHECK(of_rank(2).file == "work/20260131_235959/20260131_235959_rank2.log");
  CHECK(of_rank(2).level == LogLevel::kInfo);
  CHECK(of_rank(2).rank == 2);
  config.log_file = "here.log";
  CHECK(of_rank(0).file == "here.log");
  CHECK(of_rank(2).file == "here.log.rank2");
}

TEST_CASE("ranks that share a machine take one compute thread each, unless somebody says otherwise") {
  const dist::Environment silent = [](const std::string&) { return std::nullopt; };
  const dist::Environment two = [](const std::string& name) {
    return name == "OMP_NUM_THREADS" ? std::optional<std::string>("2") : std::nullopt;
  };
  CHECK(threads_to_set({}, 4, silent) == 1);
  CHECK(threads_to_set({}, 4, two) == std::nullopt);
  CHECK(threads_to_set(3, 4, two) == 3);
  CHECK(threads_to_set({}, 1, silent) == std::nullopt);
}

TEST_CASE("the environment's facts name the machine, the build and the ranks") {
  dist::RankInfo info;
  info.world_size = 4;
  info.launcher = "slurm";
  const std::string text = environment_text(collect_env(info, kCpu));
  for (const char* part : {"system environment\n  platform: Linux", "\n  host memory: ", "\n  compiler: GCC ",
                           "\nruntime environment\n  launcher: slurm\n  distributed: yes\n  ranks: 4", "device: cpu"}) {
    CHECK_MESSAGE(text.find(part) != std::string::npos, part);
  }
}

TEST_CASE("arguments of the run in the strategy block mean what they mean at the top level") {
  Registry registry;
  test::add_tiny_types(registry);
  const auto parsed = [&](const std::vector<std::string>& overrides) {
    ConfigNode config = test::tiny_config("work", overrides);
    if (overrides.front().starts_with("strategy.work_dir")) config.erase("work_dir");
    config.erase("randomness");
    config.erase("log_level");
    return parse_runner_config(config, "tiny.yaml", registry);
  };
  CHECK(parsed({"strategy.work_dir=elsewhere"}).work_dir == "elsewhere");
  CHECK(parsed({"strategy.experiment_name=small"}).experiment_name == "small");
  const RunnerConfig env = parsed(
      {"strategy.env_kwargs={launcher: none, randomness: {seed: 11}, resource_limit: 300, dist_cfg: {timeout: 9}}"});
  CHECK(env.launcher == "none");
  CHECK(env.randomness.seed == 11);
  CHECK(env.env_cfg.resource_limit == 300);
  CHECK(env.env_cfg.dist_cfg.timeout == 9);
  const RunnerConfig log = parsed({"strategy.log_kwargs={log_level: ERROR, log_file: run.log, distributed: true}"});
  CHECK(log.log_level == "ERROR");
  CHECK(log.log_kwargs.log_file == "run.log");
  CHECK(log.log_kwargs.distributed);
  CHECK(parsed({"resume=some/iter_3"}).load_from == "some/iter_3");
  CHECK(parsed({"resume=some/iter_3"}).resumes());

  const std::vector<std::pair<std::vector<std::string>, std::string>> wrong = {
      {{"strategy.work_dir=elsewhere"}, "give one of them"},
      {{"strategy.env_kwargs={randomness: {seed: 11}}"}, "strategy.env_kwargs.randomness"},
      {{"strategy.env_kwargs={resource_limit: 300}", "env_cfg.resource_limit=400"}, "env_cfg.resource_limit"},
      {{"strategy.env_kwargs={resource_limt: 300}"}, "resource_limit"},
      {{"strategy.env_kwargs={cudnn_benchmark: true}"}, "chosen by shape"},
      {{"strategy.env_kwargs=3"}, "expected a map"},
      {{"strategy.log_kwargs={file_mode: w}"}, "continued"},
      {{"strategy.log_kwargs={logger_name: x}"}, "castor"},
      {{"resume=a", "load_from=b"}, "give one of them"}};
  for (const auto& [overrides, reason] : wrong) {
    const std::string text = mistakes_of(overrides);
    INFO(text);
    CHECK(text.starts_with("1 mistake in tiny.yaml:"));
    CHECK(text.find(reason) != std::string::npos);
  }
  CHECK(mistakes_of({"strategy.work_dir=work", "strategy.env_kwargs=null"}) == "");
  // A strategy that is built without a runner has no run to give them to.
  TypedConfig typed("ColossalAIStrategy");
  typed.node = read_yaml_text("{plugin: null, work_dir: x}", "strategy");
  CHECK_THROWS_WITH_AS(registry.strategies.build(typed, kCpu, 1, nullptr), doctest::Contains("belongs to the run"),
                       ConfigError);
}

}  // namespace
}  // namespace castor::strategy
