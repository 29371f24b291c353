// ColossalAIStrategy: the whole path of a step. What a plugin changes (which parts a rank steps, how gradients meet and
// weights come back) sits behind Sharding; without one a process trains alone.
#pragma once

#include <memory>
#include <vector>

#include "autograd/finite_watch.h"
#include "autograd/nn/buffer_update.h"
#include "autograd/optim/side_copies.h"
#include "strategy/checkpoint/saver.h"
#include "strategy/config/typed_config.h"
#include "strategy/plugin.h"
#include "strategy/strategy.h"

namespace castor::strategy {

class ColossalAIStrategy final : public BaseStrategy {
 public:
  /// The `strategy` block of a config.
  struct Config {
    TypedConfig plugin{"gemini"};  ///< the peer's default; absent = no plugin
    TypedConfig mixed_precision;
    std::optional<AutoScaleConfig> auto_scale_lr;
  };

  /// device         where the model and its states live: cpu, or meta to plan a run
  /// seed           of weights and dropout
  /// auto_scale_lr  used where `prepare` is not told
  /// precision      `mixed_precision`; none: fp32
  ColossalAIStrategy(Device device, std::uint64_t seed, const AutoScaleConfig& auto_scale_lr = {},
                     std::optional<MixedPrecision> precision = {});
  /// As one rank of `comm`, which must outlive it, with the model spread as `plugin` says.
  ///   precision  none: the plugin's, else fp32. Throws ConfigError if both are given and differ (fp16_apex is a kind
  ///   of fp16)
  ColossalAIStrategy(Device device, std::uint64_t seed, const AutoScaleConfig& auto_scale_lr,
                     std::unique_ptr<Plugin> plugin, dist::Comm& comm, std::optional<MixedPrecision> precision = {});

  std::int64_t rank() const override { return comm_ == nullptr ? 0 : comm_->rank(); }
  std::int64_t world_size() const override { return comm_ == nullptr ? 1 : comm_->world_size(); }

  void prepare(const ModelFactory& model, const PrepareOptions& options) override;
  StepResult train_step(const autograd::Batch& batch) override;
  Tensor val_step(const autograd::Batch& batch) override;
  void save_checkpoint(const std::string& filename, const SaveOptions& options = {}) override;
  void wait_for_saves() override { saver_.wait(); }
  LoadReport load_checkpoint(const std::string& filename, const LoadOptions& options = {}) override;
  CheckpointContents resume(const std::string& filename, const ResumeOptions& options = {}) override;
  void reserve_saves() override;
  /// Random numbers of later steps start from here: what a resume does with the saved run's seed.
  void set_seed(std::uint64_t seed) { seed_ = seed; }
  Precision precision() const { return precision_.type; }
  autograd::TrainableModel& model() override;
  OptimWrapper* optim_wrapper() override { return optim_wrapper_.get(); }
  std::vector<std::unique_ptr<ParamScheduler>>& param_schedulers() override { return schedulers_; }

 private:
  void make_model(const ModelFactory& model, bool is_spread);
  std::unique_ptr<Sharding> make_sharding(const PrepareOptions& options);
  WeightPlaces weight_places() const;
  OptimWrapperOptions wrapper_options(const PrepareOptions& options);
  autograd::Batch on_device(const autograd::Batch& batch) const;
  void scale_lr(const PrepareOptions& options);
  std::int64_t samples_per_micro_step() const;  // of all ranks
  Json numerics() const;
  void apply_buffer_updates(std::int64_t micro_steps);
  std::string first_not_finite();
  std::map<std::string, autograd::SideCopies::Fetch> begin_reading(
      const std::map<std::string, autograd::Variable>& losses, const autograd::Variable& total);
  std::map<std::string, double> mean_over_ranks(const std::map<std::string, double>& values);

  Device device_;
  std::uint64_t seed_;
  AutoScaleConfig auto_scale_lr_;
  std::unique_ptr<Plugin> plugin_;
  dist::Comm* comm_ = nullptr;
  std::int64_t micro_batch_ = 1;
  autograd::PendingBufferUpdates buffer_updates_;
  std::unique_ptr<autograd::SideCopies> loss_copies_;
  std::optional<autograd::FiniteWatch> watch_;  // in the window that decides whether training is given up
  MixedPrecision precision_;
  std::shared_ptr<autograd::TrainableModel> model_;
  autograd::Initializers fills_;  // of parameters that have no memory yet
  std::unique_ptr<OptimWrapper> optim_wrapper_;
  std::vector<std::unique_ptr<ParamScheduler>> schedulers_;
  std::unique_ptr<dist::Comm> save_ranks_;  // null where the main rank saves everything
  CheckpointSaver saver_;
};

/// The `strategy` block's keys and what this version does with each.
template <class V>
void describe(V& v, ColossalAIStrategy::Config& c) {
  v.field("plugin", c.plugin, "how the model is sharded; null: not at all", registered("plugin"), or_name());
  v.field("auto_scale_lr", c.auto_scale_lr, "as the top-level auto_scale_lr, which wins");
  v.field("mixed_precision", c.mixed_precision, "of weights and activations; null: the plugin's own, or fp32",
          registered("mixed_precision"), or_name());
  v.refuse("config", "the peer's launch config has no meaning here: options belong to the plugin");
  v.refuse("model_wrapper", "not in this version: a strategy calls the model's loss and predict itself");
  v.refuse("work_dir", "set work_dir at the top level or with --work-dir");
  v.refuse("experiment_name", "set experiment_name at the top level");
  v.refuse("env_kwargs", "set env_cfg and randomness at the top level");
  v.refuse("log_kwargs", "set log_level at the top level");
}

}  // namespace castor::strategy
