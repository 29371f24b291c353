// Booster: the way into training for programs of their own, with the names of ColossalAI's class. ColossalAIStrategy
// stands on it: there is one mechanism, and a loop written on this gives the strategy's bits.
//
//   Booster booster({.mixed_precision = Precision::bf16, .plugin = std::move(plugin), .comm = &ranks});
//   Boosted run = booster.boost(make_model, {.optimizer = make_optimizer});
//   for (...) {
//     const auto losses = run.model->loss(batch);
//     booster.backward(losses.at("loss"), *run.optimizer);
//     run.optimizer->step();
//   }
//
// Delicate: models come as functions that build them, since a plugin may want a model without memory and fill it piece
// by piece. What boost gives must go before the booster.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "autograd/nn/trainable.h"
#include "dist/comm.h"
#include "strategy/boosted_model.h"
#include "strategy/boosted_optimizer.h"
#include "strategy/checkpoint/saver.h"
#include "strategy/data/data_loader.h"
#include "strategy/param_groups.h"
#include "strategy/plugin.h"
#include "strategy/precision.h"
#include "strategy/scheduler/param_scheduler.h"

namespace castor::strategy {

/// Builds a model with its tensors on a device, possibly meta.
using ModelFactory = std::function<std::shared_ptr<autograd::TrainableModel>(const autograd::TensorOptions&)>;
/// Builds an optimizer; its groups start with the configured values.
using OptimizerFactory = std::function<std::unique_ptr<autograd::Optimizer>()>;
/// Builds a scheduler over an optimizer's groups.
using SchedulerFactory = std::function<std::unique_ptr<ParamScheduler>(const SchedulerContext&)>;

/// Facts about the run that schedules and windows follow: mmengine's dispatch_kwargs.
struct DispatchOptions {
  std::optional<std::int64_t> max_iters;
  std::optional<std::int64_t> max_epochs;
  std::optional<std::int64_t> epoch_length;
  std::int64_t cur_iter = 0;
  std::int64_t train_micro_batch_size_per_gpu = 1;
  /// Micro-steps of this rank in one iteration: more than one where few ranks do what a job of more was asked for.
  std::int64_t micro_steps_per_iter = 1;
  /// False: a model without an optimizer is not filled from the seed, since its weights are loaded next.
  bool init_weights_for_test_or_val = true;
};

struct BoosterOptions {
  Device device = kCpu;                                ///< where models live; meta to plan a run
  std::uint64_t seed = 0;                              ///< of weights and dropout
  std::optional<MixedPrecision> mixed_precision = {};  ///< none: the plugin's, else fp32
  std::unique_ptr<Plugin> plugin = {};                 ///< null: one process that holds everything
  dist::Comm* comm = nullptr;                          ///< a plugin's ranks; must outlive the booster
};

/// What a model is boosted with; without an optimizer it is only evaluated.
struct BoostOptions {
  OptimizerFactory optimizer = {};
  std::vector<SchedulerFactory> param_schedulers = {};
  std::optional<ClipConfig> clip = {};
  std::optional<ParamwiseConfig> paramwise = {};  ///< unset: one group
  bool counts_items = false;                      ///< BoostedOptimizerOptions::counts_items
  std::int64_t accumulative_counts = 0;           ///< micro-steps of this rank in a window, at most; 0: not known
  DispatchOptions dispatch = {};
  std::optional<StepForecast> forecast =
      {};  ///< of the plan of this run; unset: plugins measure the first step instead
  MemoryLimits limits = {};
  /// Called with the optimizer before schedules read its groups.
  std::function<void(autograd::Optimizer&)> adjust = {};
};

/// What boost gives.
struct Boosted {
  std::unique_ptr<BoostedModel> model;
  std::unique_ptr<BoostedOptimizer> optimizer;  ///< null without one
  std::vector<std::unique_ptr<ParamScheduler>> lr_schedulers;
};

/// save_model's options, by ColossalAI's names.
struct SaveModelOptions {
  bool shard = false;                  ///< true: a folder of several files with an index; false: one file
  std::int64_t size_per_shard = 1024;  ///< MiB of tensors in a file, with `shard`
  std::optional<DType> dtype = {};     ///< what floating-point weights are saved as; none: as they are, masters in f32
  bool use_safetensors = true;         ///< false is refused: pickles are read but not written
  bool use_async = false;              ///< write while training goes on, as the weights are now
};

/// While it lives, gradients stay on their rank: Booster::no_sync.
class NoSync {
 public:
  explicit NoSync(BoostedOptimizer& optimizer) : optimizer_(optimizer) { optimizer_.set_deferred(true); }
  ~NoSync() { optimizer_.set_deferred(false); }
  NoSync(const NoSync&) = delete;
  NoSync& operator=(const NoSync&) = delete;

 private:
  BoostedOptimizer& optimizer_;
};

class Booster {
 public:
  /// Throws ConfigError for a plugin without ranks, several ranks without a plugin, or a precision that is not the
  /// plugin's (fp16_apex is a kind of fp16).
  explicit Booster(BoosterOptions options);

  Device device() const { return device_; }
  int rank() const { return comm_ == nullptr ? 0 : comm_->rank(); }
  int world_size() const { return comm_ == nullptr ? 1 : comm_->world_size(); }
  const MixedPrecision& precision() const { return precision_; }
  /// Null: one process that holds everything.
  const Plugin* plugin() const { return plugin_.get(); }
  CheckpointSaver& saver() { return saver_; }
  /// Who saves a sharded model's parts; null where the main rank has everything.
  dist::Comm* save_ranks() { return save_ranks_.get(); }

  /// Builds the model where it is to live, fills its weights from the seed, and spreads it and the optimizer as the
  /// plugin says. All ranks call it. Throws ConfigError for options that contradict the plugin's.
  Boosted boost(const ModelFactory& model, const BoostOptions& options = {});

  /// The gradients of `loss`, undivided: the optimizer's step takes the mean over all passes since the last one.
  ///   items  BoostedOptimizer::backward
  void backward(const autograd::Variable& loss, BoostedOptimizer& optimizer, const autograd::LossItems& items = {});
  /// While the result lives, backward passes add up on their rank and nothing is exchanged; a window's last backward
  /// must be outside. Results are then those of no split in particular. Throws ConfigError unless the plugin supports
  /// it: TorchDDPPlugin and LowLevelZeroPlugin's stage 1 do.
  [[nodiscard]] NoSync no_sync(BoostedModel& model, BoostedOptimizer& optimizer);
  /// Refused: throws ConfigError.
  [[noreturn]] void execute_pipeline() const;
  /// Refused: throws ConfigError.
  [[noreturn]] void enable_lora() const;
  /// Micro-batches of this rank.
  ///   options  world_size and rank are set here
  std::unique_ptr<DataLoader> prepare_dataloader(std::shared_ptr<const Dataset> dataset, SamplerOptions options) const;

  // All ranks call the following. What is written appears whole or not at all. With use_async a failure is thrown by
  // the next call that saves or loads, or by saver().wait().
  /// The weights for any tool that knows safetensors: the file `path`, or with `shard` the folder; an earlier one is
  /// replaced. Of 16-bit weights the f32 masters. Throws IoError, also, before anything is touched, for a folder that
  /// holds what save_model does not write; ConfigError for what is refused. A crash at the moment when a folder is
  /// replaced can leave the earlier one as `path`.replaced; load_model finds it there.
  void save_model(BoostedModel& model, const std::string& path, const SaveModelOptions& options = {});
  /// From any source of weights (formats/tensor_source.h). Throws FormatError, before anything is changed, if nothing
  /// fits, or if `strict` and anything does not fit; IoError.
  LoadReport load_model(BoostedModel& model, const std::string& path, bool strict = true);
  /// States, masters, hyper-parameters and counts as the folder `path`, in pieces by the rank that has them.
  void save_optimizer(BoostedOptimizer& optimizer, const std::string& path, bool use_async = false);
  /// The same under any plugin and number of ranks. Throws FormatError, before anything is changed, for another
  /// optimizer's or model's.
  void load_optimizer(BoostedOptimizer& optimizer, const std::string& path);
  /// The schedule's state as the JSON file `path`.
  void save_lr_scheduler(const ParamScheduler& scheduler, const std::string& path);
  /// Throws FormatError for another type's.
  void load_lr_scheduler(ParamScheduler& scheduler, const std::string& path);

 private:
  bool is_main() const { return rank() == 0; }
  void save_together(SaveRequest request);
  std::unique_ptr<Sharding> make_sharding(autograd::TrainableModel& model, const autograd::Initializers& fills,
                                          const BoostOptions& options);
  BoostedOptimizerOptions optimizer_options(BoostedModel& model, const BoostOptions& options);
  std::function<std::int64_t(std::int64_t)> over_ranks(const char* what, dist::ReduceOp op);

  Device device_;
  std::uint64_t seed_;
  MixedPrecision precision_;
  std::unique_ptr<Plugin> plugin_;
  dist::Comm* comm_;
  std::unique_ptr<dist::Comm> save_ranks_;
  CheckpointSaver saver_;
};

}  // namespace castor::strategy
