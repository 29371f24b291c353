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
  // These are the run's: the runner takes them from here before the block is read (runner/strategy_arguments.h).
  v.refuse("work_dir", "belongs to the run: a runner's config may have it here as well as at the top level");
  v.refuse("experiment_name", "belongs to the run: a runner's config may have it here as well as at the top level");
  v.refuse("env_kwargs",
           "belongs to the run: a runner's config may have it here; at the top level it is env_cfg, "
           "randomness and launcher");
  v.refuse("log_kwargs", "belongs to the run: a runner's config may have it here as well as at the top level");
}

}  // namespace castor::strategy
