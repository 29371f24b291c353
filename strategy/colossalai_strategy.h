// ColossalAIStrategy: a run's steps, checkpoints and resumes over what a Booster spread. What a plugin changes (which
// parts a rank steps, how gradients meet and weights come back) sits behind Sharding; what a step is, behind
// ModelWrapper.
#pragma once

#include <memory>
#include <vector>

#include "strategy/booster.h"
#include "strategy/config/typed_config.h"
#include "strategy/model_wrapper.h"
#include "strategy/strategy.h"

namespace castor::strategy {

class ColossalAIStrategy final : public BaseStrategy {
 public:
  /// The `strategy` block of a config.
  struct Config {
    TypedConfig plugin{"gemini"};  ///< the peer's default; absent = no plugin
    TypedConfig mixed_precision;
    TypedConfig model_wrapper{"ColossalAIModelWrapper"};
    std::optional<AutoScaleConfig> auto_scale_lr;
    ConfigNode work_dir, experiment_name, env_kwargs, log_kwargs;  ///< null: a runner took them
  };

  /// device         where the model and its states live: cpu, or meta to plan a run
  /// seed           of weights and dropout
  /// auto_scale_lr  used where `prepare` is not told
  /// precision      `mixed_precision`; none: fp32
  /// wrapper        `model_wrapper`; empty: ColossalAIModelWrapper
  ColossalAIStrategy(Device device, std::uint64_t seed, const AutoScaleConfig& auto_scale_lr = {},
                     std::optional<MixedPrecision> precision = {}, ModelWrapperFactory wrapper = {});
  /// As one rank of `comm`, which must outlive it, with the model spread as `plugin` says.
  ///   precision  none: the plugin's, else fp32. Throws ConfigError if both are given and differ (fp16_apex is a kind
  ///   of fp16)
  ColossalAIStrategy(Device device, std::uint64_t seed, const AutoScaleConfig& auto_scale_lr,
                     std::unique_ptr<Plugin> plugin, dist::Comm& comm, std::optional<MixedPrecision> precision = {},
                     ModelWrapperFactory wrapper = {});
  /// Either: plugin and ranks may be null, as BoosterOptions says.
  ColossalAIStrategy(Device device, std::uint64_t seed, const AutoScaleConfig& auto_scale_lr,
                     std::unique_ptr<Plugin> plugin, dist::Comm* comm, std::optional<MixedPrecision> precision,
                     ModelWrapperFactory wrapper);
  /// Waits for a save in progress, which reads what goes now.
  ~ColossalAIStrategy() override;

  std::int64_t rank() const override { return booster_.rank(); }
  std::int64_t world_size() const override { return booster_.world_size(); }

  void prepare(const ModelFactory& model, const PrepareOptions& options) override;
  StepResult train_step(const autograd::Batch& batch) override;
  Tensor val_step(const autograd::Batch& batch) override;
  Tensor test_step(const autograd::Batch& batch) override;
  void save_checkpoint(const std::string& filename, const SaveOptions& options = {}) override;
  void wait_for_saves() override { booster_.saver().wait(); }
  LoadReport load_checkpoint(const std::string& filename, const LoadOptions& options = {}) override;
  CheckpointContents resume(const std::string& filename, const ResumeOptions& options = {}) override;
  void reserve_saves() override;
  /// Random numbers of later steps start from here.
  void set_seed(std::uint64_t seed) { boosted_model().set_seed(seed); }
  Precision precision() const { return booster_.precision().type; }
  autograd::TrainableModel& model() override { return boosted_model().module(); }
  OptimWrapper* optim_wrapper() override { return optim_wrapper_.get(); }
  std::vector<std::unique_ptr<ParamScheduler>>& param_schedulers() override { return boosted_.lr_schedulers; }
  /// What it stands on.
  Booster& booster() { return booster_; }

 private:
  BoostedModel& boosted_model();
  void check_recording(const PrepareOptions& options) const;
  void scale_lr(autograd::Optimizer& optimizer, const PrepareOptions& options) const;
  std::int64_t samples_per_micro_step() const;  // of all ranks
  Json numerics() const;

  AutoScaleConfig auto_scale_lr_;
  ModelWrapperFactory make_wrapper_;
  dist::Comm* comm_;
  std::int64_t micro_batch_ = 1;
  Booster booster_;
  Boosted boosted_;
  std::unique_ptr<OptimWrapper> optim_wrapper_;
  std::unique_ptr<ModelWrapper> wrapper_;
};

/// The `strategy` block's keys and what this version does with each.
template <class V>
void describe(V& v, ColossalAIStrategy::Config& c) {
  v.field("plugin", c.plugin, "how the model is sharded; null: not at all", registered("plugin"), or_name());
  v.field("auto_scale_lr", c.auto_scale_lr, "as the top-level auto_scale_lr, which wins");
  v.field("mixed_precision", c.mixed_precision, "of weights and activations; null: the plugin's own, or fp32",
          registered("mixed_precision"), or_name());
  v.refuse("config", "the peer's launch config has no meaning here: options belong to the plugin");
  v.field("model_wrapper", c.model_wrapper, "what a step does with the model", registered("model_wrapper"), or_name());
  v.field("work_dir", c.work_dir, "in a run's config: as the top-level work_dir");
  v.field("experiment_name", c.experiment_name, "in a run's config: as the top-level experiment_name");
  v.field("env_kwargs", c.env_kwargs,
          "in a run's config: launcher and randomness as at the top level, the rest as env_cfg's");
  v.field("log_kwargs", c.log_kwargs, "in a run's config: log_level as at the top level, the rest as log_kwargs'");
  // The runner takes them before it reads the block (runner/strategy_arguments.h).
  constexpr const char* kOfTheRun =
      "belongs to the run, and this strategy is built without one: set up folders, seed, ranks and log by yourself";
  v.check(
      "work_dir", [&] { return c.work_dir.is_null(); }, kOfTheRun);
  v.check(
      "experiment_name", [&] { return c.experiment_name.is_null(); }, kOfTheRun);
  v.check(
      "env_kwargs", [&] { return c.env_kwargs.is_null(); }, kOfTheRun);
  v.check(
      "log_kwargs", [&] { return c.log_kwargs.is_null(); }, kOfTheRun);
}

}  // namespace castor::strategy
