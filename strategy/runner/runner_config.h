// The top level of a training config: mmengine's runner keys. Each works or is refused as not in this version; none is
// unknown and none is ignored.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "strategy/config/field.h"
#include "strategy/config/typed_config.h"
#include "strategy/optim_wrapper.h"
#include "strategy/strategy.h"

namespace castor::strategy {

/// Most of what a config counts, beyond what anyone trains: with them no count that a run makes of these, samples of a
/// window or micro-steps of all ranks, leaves 64 bits with up to a million ranks.
inline constexpr std::int64_t kMaxBatchSize = std::int64_t{1} << 26;
inline constexpr std::int64_t kMaxAccumulation = 1 << 16;
inline constexpr std::int64_t kMaxRunLength = 1'000'000'000'000;

/// `train_dataloader`, `val_dataloader`, `test_dataloader`.
struct DataLoaderConfig {
  std::int64_t batch_size = 1;
  TypedConfig dataset;
  TypedConfig sampler{"DefaultSampler"};
  bool drop_last = false;
};

template <class V>
void describe(V& v, DataLoaderConfig& c) {
  v.field("batch_size", c.batch_size, "samples per micro-batch and rank", required, at_least(1),
          at_most(kMaxBatchSize));
  v.field("dataset", c.dataset, "where samples come from", required, registered("dataset"));
  v.field("sampler", c.sampler, "the order of samples", registered("sampler"));
  v.field("drop_last", c.drop_last, "leave an epoch's tail out that fills no whole global micro-batch");
  v.retired("num_workers", ConfigNode(0), "batches are made on the training thread, which costs microseconds");
  v.retired("persistent_workers", ConfigNode(false), "there are no worker processes");
  v.retired("pin_memory", ConfigNode(false), "a batch is tokens or small images: copying it takes microseconds");
}

/// `train_cfg`.
struct TrainConfig {
  std::optional<std::string> type;
  std::optional<bool> by_epoch;
  std::optional<std::int64_t> max_epochs;
  std::optional<std::int64_t> max_iters;
  std::int64_t val_begin = 1;
  std::optional<std::int64_t> val_interval;

  /// Which of the two loops runs.
  bool is_by_epoch() const { return type ? *type == "EpochBasedTrainLoop" : by_epoch.value_or(true); }
};

template <class V>
void describe(V& v, TrainConfig& c) {
  v.field("type", c.type, "the loop; by_epoch chooses it when left out",
          one_of({"EpochBasedTrainLoop", "IterBasedTrainLoop"}));
  v.field("by_epoch", c.by_epoch, "count in epochs (default) or iterations");
  v.field("max_epochs", c.max_epochs, "epochs to train, by epoch", at_least(1), at_most(kMaxRunLength));
  v.field("max_iters", c.max_iters, "iterations (micro-steps) to train, by iteration", at_least(1),
          at_most(kMaxRunLength));
  v.field("val_begin", c.val_begin, "first epoch or iteration after which validation may run", at_least(0));
  v.field("val_interval", c.val_interval, "validate every so many epochs (default 1) or iterations (default 1000)",
          at_least(1));
  v.refuse("dynamic_intervals", "not in this version");
  v.check(
      "by_epoch", [&] { return !c.type || !c.by_epoch || *c.by_epoch == (*c.type == "EpochBasedTrainLoop"); },
      "contradicts type");
  v.check(
      "max_epochs", [&] { return !c.is_by_epoch() || c.max_epochs; }, "is needed by a loop that counts epochs");
  v.check(
      "max_iters", [&] { return c.is_by_epoch() || c.max_iters; }, "is needed by a loop that counts iterations");
  v.check(
      "max_iters", [&] { return !c.is_by_epoch() || !c.max_iters; },
      "has no meaning in a loop that counts epochs; set max_epochs, or by_epoch: false");
  v.check(
      "max_epochs", [&] { return c.is_by_epoch() || !c.max_epochs; },
      "has no meaning in a loop that counts iterations; set max_iters, or by_epoch: true");
}

/// `val_cfg`, `test_cfg`: nothing to choose yet.
struct EvalConfig {
  std::optional<std::string> type;
};

template <class V>
void describe(V& v, EvalConfig& c) {
  v.field("type", c.type, "the loop", one_of({"ValLoop", "TestLoop"}));
  v.retired("fp16", ConfigNode(false), "evaluation runs in the precision of training");
}

/// `optim_wrapper`.
struct OptimWrapperConfig {
  std::string type = "ColossalAIOptimWrapper";
  TypedConfig optimizer;
  std::int64_t accumulative_counts = 1;
  std::optional<ClipConfig> clip_grad;
  std::optional<ParamwiseConfig> paramwise_cfg;
  std::string loss_normalisation = "micro_batch";
};

template <class V>
void describe(V& v, OptimWrapperConfig& c) {
  v.field("type", c.type, "the wrapper; a strategy of ColossalAI takes no other", one_of({"ColossalAIOptimWrapper"}));
  v.field("optimizer", c.optimizer, "what updates the weights", required, registered("optimizer"));
  v.field("accumulative_counts", c.accumulative_counts, "micro-steps whose gradients are summed before an update",
          at_least(1), at_most(kMaxAccumulation));
  v.field("clip_grad", c.clip_grad,
          "limit on gradients before an update; with a plugin it belongs to the plugin's max_norm");
  v.field("paramwise_cfg", c.paramwise_cfg,
          "learning rates and decays of some parameters as multiples of the optimizer's");
  v.field("loss_normalisation", c.loss_normalisation,
          "micro_batch: a window's gradient is the mean of its micro-batches'; tokens: of all targets that count",
          one_of({"micro_batch", "tokens"}));
  v.retired("constructor", ConfigNode("DefaultOptimWrapperConstructor"),
            "there is one way to make groups: paramwise_cfg");
}

/// `default_hooks`.
struct DefaultHooksConfig {
  TypedConfig logger{"LoggerHook"};
  TypedConfig checkpoint{"CheckpointHook"};
};

template <class V>
void describe(V& v, DefaultHooksConfig& c) {
  v.field("logger", c.logger, "lines of progress", registered("hook"));
  v.field("checkpoint", c.checkpoint, "saved weights", registered("hook"));
  for (const char* name : {"timer", "param_scheduler", "runtime_info", "sampler_seed"}) {
    v.refuse(name, "always on and without options: times, schedules and seeds are part of the loop");
  }
}

/// `env_cfg.dist_cfg`.
struct DistConfig {
  std::int64_t timeout = 600;
  std::string transport = "auto";
  std::string gpu_transport = "auto";
};

template <class V>
void describe(V& v, DistConfig& c) {
  constexpr std::int64_t kMonth = 30 * 24 * 3600;
  v.field("timeout", c.timeout, "seconds that a rank waits for others in a collective before they are named as late",
          at_least(1), at_most(kMonth));
  v.field("transport", c.transport,
          "what ranks talk through; auto: shared memory on one machine, else TCP; mpi: under mpirun, if built with it",
          one_of({"auto", "shared_memory", "tcp", "mpi"}));
  v.field(
      "gpu_transport", c.gpu_transport,
      "what GPUs talk through; peer: they write into each other's memory, on one host; nccl; auto: peer where all GPUs "
      "of a group reach each other, else nccl",
      one_of({"auto", "peer", "nccl"}));
  v.retired("backend", ConfigNode("nccl"), "GPUs talk as gpu_transport says, and CPUs as transport says");
}

/// `env_cfg`.
struct EnvConfig {
  std::optional<std::string> device;
  std::int64_t resource_limit = 4096;
  std::optional<std::int64_t> num_threads;
  DistConfig dist_cfg;
};

template <class V>
void describe(V& v, EnvConfig& c) {
  constexpr std::int64_t kMaxThreads = 8192;  // processors that Linux knows
  v.field("resource_limit", c.resource_limit, "open files: the soft limit is raised to this, up to the hard one",
          at_least(1));
  v.field("device", c.device, "where models compute; null: cuda where this build and machine have GPUs",
          one_of({"cpu", "cuda"}));
  v.field("num_threads", c.num_threads, "compute threads; null: OMP_NUM_THREADS, or one a core", at_least(1),
          at_most(kMaxThreads));
  v.retired("cudnn_benchmark", ConfigNode(false),
            "a kernel is chosen by shape alone, so results do not change from run to run");
  v.refuse("mp_cfg", "there are no worker processes to start");
  v.field("dist_cfg", c.dist_cfg, "what ranks say to each other");
}

/// `log_kwargs`.
struct LogConfig {
  std::optional<std::string> log_file;
  bool distributed = false;
};

template <class V>
void describe(V& v, LogConfig& c) {
  v.field("log_file", c.log_file, "the log's file; null: WORK_DIR/TIME/TIME.log", non_empty());
  v.field("distributed", c.distributed,
          "every rank writes a log of its own beside rank 0's, with its number in the name");
  v.retired("logger_name", ConfigNode(), "lines are headed by castor");
  v.retired("file_mode", ConfigNode("a"), "a log that is there is continued");
}

/// A field that may be left out, one map, or a list of maps.
using OneOrMany = std::optional<std::variant<TypedConfig, std::vector<TypedConfig>>>;

/// The whole file.
struct RunnerConfig {
  TypedConfig model;
  std::optional<DataLoaderConfig> train_dataloader, val_dataloader, test_dataloader;
  std::optional<TrainConfig> train_cfg;
  std::optional<EvalConfig> val_cfg, test_cfg;
  OneOrMany val_evaluator, test_evaluator;
  std::optional<OptimWrapperConfig> optim_wrapper;
  OneOrMany param_scheduler;
  TypedConfig strategy;
  std::optional<AutoScaleConfig> auto_scale_lr;
  DefaultHooksConfig default_hooks;
  std::vector<TypedConfig> custom_hooks;
  EnvConfig env_cfg;
  RandomnessConfig randomness;
  std::optional<std::string> launcher;
  std::string log_level = "INFO";
  LogConfig log_kwargs;
  std::string work_dir = "work_dirs";
  std::optional<std::string> experiment_name;
  std::optional<std::string> load_from;
  std::variant<bool, std::string> resume = false;  ///< a bool once parse_runner_config is done
  CompileOption compile = false;

  bool resumes() const { return std::get<bool>(resume); }
};

template <class V>
void describe(V& v, RunnerConfig& c) {
  v.field("model", c.model, "what is trained", required, registered("model"));
  v.field("train_dataloader", c.train_dataloader, "training data; goes with train_cfg and optim_wrapper");
  v.field("train_cfg", c.train_cfg, "how long to train and when to validate");
  v.field("optim_wrapper", c.optim_wrapper, "how weights are updated");
  v.field("param_scheduler", c.param_scheduler, "schedules of hyper-parameters, one or a list",
          registered("param_scheduler"));
  v.field("val_dataloader", c.val_dataloader, "validation data; goes with val_cfg and val_evaluator");
  v.field("val_cfg", c.val_cfg, "the validation loop");
  v.field("val_evaluator", c.val_evaluator, "metrics of validation, one or a list", registered("metric"));
  v.field("test_dataloader", c.test_dataloader, "test data; goes with test_cfg and test_evaluator");
  v.field("test_cfg", c.test_cfg, "the test loop");
  v.field("test_evaluator", c.test_evaluator, "metrics of the test, one or a list", registered("metric"));
  v.field("strategy", c.strategy, "how a step is carried out", required, registered("strategy"));
  v.field("auto_scale_lr", c.auto_scale_lr, "scale the learning rate with the batch size");
  v.field("default_hooks", c.default_hooks, "hooks that every run has");
  v.field("custom_hooks", c.custom_hooks, "further hooks", registered("hook"));
  v.field("env_cfg", c.env_cfg, "the process");
  v.field("randomness", c.randomness, "the seed");
  v.field("launcher", c.launcher, "what started the ranks; found out from the environment when left out",
          one_of({"none", "pytorch", "slurm", "mpi"}));
  v.field("log_level", c.log_level, "least important line to show",
          one_of({"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"}));
  v.field("log_kwargs", c.log_kwargs, "where the log goes");
  v.field("work_dir", c.work_dir, "folder of logs, plan and weights", non_empty());
  v.field("experiment_name", c.experiment_name, "heads the log; the run's time stamp is added");
  v.field("load_from", c.load_from,
          "weights to start from: a saved iter_N or epoch_N folder, a safetensors or PyTorch file, or a URL of one");
  v.field("resume", c.resume,
          "continue the run saved in load_from or, where that is left out, in the newest checkpoint of work_dir, if "
          "any; or "
          "the checkpoint's path");
  v.field("compile", c.compile,
          "true: on a GPU, without a plugin, a step's passes are recorded and run as one, and so is its update; false: "
          "op by op");
  v.check(
      "compile",
      [&] {
        const ConfigNode* plugin = c.strategy.node.find("plugin");
        return !asks_for_recording(c.compile) || (plugin != nullptr && plugin->is_null());
      },
      "passes are recorded without a plugin only: with one, gradients and weights move while a pass runs. Give "
      "strategy.plugin: null, or leave compile out");
  v.retired("default_scope", ConfigNode("castor"), "there is one registry");
  v.refuse("data_preprocessor", "not in this version: data sets give what the model takes");
  v.refuse("log_processor", "not in this version");
  v.refuse("visualizer", "not in this version: scalars go to vis_data/scalars.json");
  const auto all_or_none = [](bool a, bool b, bool d) { return (a == b) && (b == d); };
  v.check(
      "train_cfg",
      [&] { return all_or_none(c.train_dataloader.has_value(), c.train_cfg.has_value(), c.optim_wrapper.has_value()); },
      "train_dataloader, train_cfg and optim_wrapper go together: give all or none");
  v.check(
      "val_cfg",
      [&] { return all_or_none(c.val_dataloader.has_value(), c.val_cfg.has_value(), c.val_evaluator.has_value()); },
      "val_dataloader, val_cfg and val_evaluator go together: give all or none");
  v.check(
      "test_cfg",
      [&] { return all_or_none(c.test_dataloader.has_value(), c.test_cfg.has_value(), c.test_evaluator.has_value()); },
      "test_dataloader, test_cfg and test_evaluator go together: give all or none");
  v.check(
      "param_scheduler", [&] { return !c.param_scheduler || c.optim_wrapper.has_value(); }, "needs an optim_wrapper");
}

/// The maps of such a field, in order.
inline std::vector<TypedConfig> as_list(const OneOrMany& field) {
  if (!field) return {};
  if (const auto* one = std::get_if<TypedConfig>(&*field)) return {*one};
  return std::get<std::vector<TypedConfig>>(*field);
}

}  // namespace castor::strategy
