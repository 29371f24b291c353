// BaseStrategy: everything of a run that does not depend on how a model is sharded: environment, seed, folders, and the
// calls a runner makes. ColossalAIStrategy derives from it.
//
// The names and arguments are mmengine's. One order is fixed for every strategy: environment, model, weights,
// optimizer, scaled learning rate, then schedulers, so that automatic scaling and schedules never meet in the wrong
// order.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "autograd/nn/trainable.h"
#include "strategy/booster.h"
#include "strategy/checkpoint.h"
#include "strategy/compile.h"
#include "strategy/model_wrapper.h"
#include "strategy/optim_wrapper.h"

namespace castor::strategy {

/// `randomness`: where random numbers start.
struct RandomnessConfig {
  std::optional<std::int64_t> seed;
};

template <class V>
void describe(V& v, RandomnessConfig& c) {
  v.field("seed", c.seed, "starts every random number; null draws one and logs it", at_least(0));
  v.retired(
      "diff_rank_seed", ConfigNode(false),
      "random numbers are counted by sample and module, so ranks never share them under one seed; a seed of its own "
      "for each rank would make results depend on their number");
  v.retired("deterministic", ConfigNode(true), "results are always deterministic");
}

/// `auto_scale_lr`: lr *= world size * micro-batch / base_batch_size (mmengine's formula).
struct AutoScaleConfig {
  bool enable = false;
  std::optional<std::int64_t> base_batch_size;
};

template <class V>
void describe(V& v, AutoScaleConfig& c) {
  v.field("enable", c.enable, "multiply the learning rate by real batch size / base_batch_size");
  v.field("base_batch_size", c.base_batch_size, "samples: the global batch size that optimizer.lr is meant for",
          at_least(1));
  v.check(
      "base_batch_size", [&] { return !c.enable || c.base_batch_size.has_value(); }, "is needed when enable is true");
}

/// What `prepare` is given: what a model is boosted with, and what the strategy does around it.
struct PrepareOptions : BoostOptions {
  PrepareOptions() { accumulative_counts = 1; }  // a strategy steps by its own count
  std::optional<AutoScaleConfig> auto_scale_lr;  ///< unset: as the strategy was told when it was made
  CompileOption compile = false;
};

/// load_or_resume's arguments.
struct StartOptions {
  std::optional<std::string> load_from = {};       ///< weights, or with `resume` a checkpoint
  std::variant<bool, std::string> resume = false;  ///< a checkpoint's path; true: load_from, else the newest there is
  std::string work_dir = "work_dirs";              ///< where the newest is looked for
  LoadOptions loading = {};                        ///< where weights are loaded
  ResumeOptions resuming = {};                     ///< where a run is resumed
};

class BaseStrategy {
 public:
  virtual ~BaseStrategy() = default;

  /// Builds the model on `device`, fills its weights from `seed`, and everything `options` asks for. A second call
  /// changes nothing.
  virtual void prepare(const ModelFactory& model, const PrepareOptions& options) = 0;
  /// Forward, backward, and the update where an accumulation window ends.
  virtual StepResult train_step(const autograd::Batch& batch) = 0;
  /// Predictions in eval mode, for validation and for tests.
  virtual Tensor val_step(const autograd::Batch& batch) = 0;
  virtual Tensor test_step(const autograd::Batch& batch) = 0;

  /// Saves the training state as the folder `filename`. Throws InternalError inside an accumulation window, whose sums
  /// are not saved: save at its end. Errors of writing: IoError (of an earlier asynchronous save, too). All ranks call
  /// it; each writes what it has parts of.
  virtual void save_checkpoint(const std::string& filename, const SaveOptions& options = {}) = 0;
  /// Prepares for asynchronous saves: memory for copies is allocated now and not in the first one.
  virtual void reserve_saves() = 0;
  /// Returns when no save is in progress. Throws the failure of an asynchronous one that nobody was told of yet.
  virtual void wait_for_saves() = 0;
  /// As load_weights, into this model; f32 masters follow the loaded weights.
  virtual LoadReport load_checkpoint(const std::string& filename, const LoadOptions& options = {}) = 0;
  /// Continues from a checkpoint: weights, and as `options` says optimizer and schedulers, the seed and the counts.
  /// Returns what it held, for those who saved more in it. Throws FormatError, before anything is changed, for a
  /// checkpoint without training state or one that does not fit this model and optimizer; IoError; ConfigError.
  virtual CheckpointContents resume(const std::string& filename, const ResumeOptions& options = {}) = 0;

  /// What a run starts from: loads weights, resumes a checkpoint, or does nothing, as mmengine's of this name. Returns
  /// what the resumed checkpoint held; nothing where none was resumed. With `resume: true` and no checkpoint anywhere
  /// it logs that and goes on. Throws as load_checkpoint and resume.
  std::optional<CheckpointContents> load_or_resume(const StartOptions& options);

  virtual autograd::TrainableModel& model() = 0;
  virtual OptimWrapper* optim_wrapper() = 0;  ///< null without an optimizer
  virtual std::vector<std::unique_ptr<ParamScheduler>>& param_schedulers() = 0;

  virtual std::int64_t rank() const { return 0; }
  virtual std::int64_t world_size() const { return 1; }
  /// True on the one rank that writes files and logs.
  bool is_main() const { return rank() == 0; }
};

}  // namespace castor::strategy
