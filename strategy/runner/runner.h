// Runner: from a checked config to a trained model. Builds the parts in one fixed order (seed, data, plan, model,
// optimizer, schedules, hooks), runs the loops, and leaves a work folder behind.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/base/file_lock.h"
#include "strategy/data/data_loader.h"
#include "strategy/metric.h"
#include "strategy/plan.h"
#include "strategy/ranks.h"
#include "strategy/registry.h"
#include "strategy/runner/hook.h"
#include "strategy/runner/runner_config.h"

namespace castor::strategy {

class Runner final : private RunControl {
 public:
  /// Checks everything that can be checked without data. Throws ConfigError with all mistakes.
  ///   config     the tree as loaded, with overrides applied
  ///   what       its name in messages
  Runner(const ConfigNode& config, const std::string& what, const Registry& registry);
  ~Runner() override;

  /// Trains as train_cfg says, validating where asked. Returns false if a stop was requested on the way; what was
  /// trained is saved.
  bool train();
  /// The plan of a training step of rank 0 of so many. Reads data only for the shape of one batch. Throws ConfigError.
  ///   target  whose kernels to plan for; unset: those of the device that the config trains on here
  Plan plan(std::int64_t world_size = 1, const MemoryLimits& limits = {}, std::optional<DeviceType> target = {});
  /// One pass over the test data with the weights of load_from, or else the last saved in work_dir; results by metric.
  /// Empty if a stop was requested on the way.
  std::map<std::string, double> test();

  const RunnerConfig& config() const { return config_; }
  /// The config with every default filled in, as YAML.
  std::string effective_yaml() const;

 private:
  BaseStrategy& strategy() override { return *strategy_; }
  const RunProgress& progress() const override { return progress_; }
  Device device() const override { return device_; }
  const std::string& work_dir() const override { return config_.work_dir; }
  const std::string& log_dir() const override { return log_dir_; }
  bool can_save() override;
  bool on_any_rank(bool value, const std::string& label) override;
  void save(const std::string& name, const SaveRules& rules) override;

  ///   dataset  what was read of it before; null: it is read
  std::unique_ptr<DataLoader> make_loader(const DataLoaderConfig& config, bool is_training,
                                          std::shared_ptr<const Dataset> dataset = nullptr) const;
  std::vector<std::unique_ptr<Metric>> make_metrics(const OneOrMany& field) const;
  PrepareOptions prepare_options() const;
  ModelFactory model_factory() const;
  bool has_plugin() const;
  /// Keeps other trainings out of work_dir until this one ends: they would remove each other's checkpoints. Throws
  /// IoError, EBUSY, on all ranks if one is there.
  void claim_work_dir();
  /// Meets the other ranks, if there are any, and agrees on the seed.
  void join_job();
  bool is_main() const { return info_.rank == 0; }
  /// The group of all ranks, for tensors where the model computes; null for a process alone.
  dist::Comm* comm() { return ranks_ == nullptr ? nullptr : &ranks_->world(); }
  /// A file in the log's folder, on the rank that writes.
  void write_log_file(const std::string& name, const std::string& contents) const;
  void set_up_environment();
  void set_up_run();
  void make_hooks();
  /// Micro-steps in an iteration: more than one where fewer ranks are here than the job was asked for. Throws
  /// ConfigError if an iteration's micro-batches cannot be shared out equally.
  std::int64_t micro_steps_per_iter() const;
  /// True in an attempt after the job's first.
  bool is_restart() const { return info_.restart_count > 0; }
  /// What its ranks were writing when they were ended. Nobody else writes there: all of them are gone.
  void remove_last_attempts_temporaries() const;
  /// What may be resumed.
  struct Candidate {
    std::string path;
    bool is_asked_for;  ///< by the user; otherwise it must be this job's own
  };
  /// The checkpoints that may be resumed, first choice first. In a restart those that this job saved come first. Throws
  /// FormatError if a resume was asked for and all that there were are damaged.
  std::vector<Candidate> resume_candidates() const;
  /// True if another job saved this candidate, which a restart then does not go on from.
  bool is_foreign(const Candidate& candidate) const;
  void load_or_resume();
  /// Resumes the first candidate that is whole. False if there is none; throws the last one's error if all
  /// are damaged.
  bool resume_newest();
  void resume_from(const std::string& checkpoint);
  /// Takes the seed of the run that is resumed, before anything is drawn from it.
  void take_saved_seed(std::uint64_t saved);
  CheckpointCallback loaded_callback();
  void train_one_iteration();
  /// The validation that is due after an iteration, and what hooks do after it. Returns whether it was validated: a
  /// stop comes first, and leaves the validation due for the run that goes on from here.
  bool end_iteration();
  /// False inside an accumulation window if schedules follow validations: nothing is saved before the window's end,
  /// where other weights are validated.
  bool can_break_off_validation();
  /// Returns false if a stop broke it off.
  bool validate();
  /// Leaves the results in progress_.metrics. Returns false, without any, if a stop was requested on the way.
  ///   can_break_off  false: a stop waits for its end
  ///   step           the strategy's val_step or test_step
  bool evaluate(const DataLoader& loader, const std::vector<std::unique_ptr<Metric>>& metrics, const char* label,
                bool can_break_off, const std::function<Tensor(const autograd::Batch&)>& step);
  std::uint64_t seed() const { return static_cast<std::uint64_t>(*config_.randomness.seed); }

  const Registry& registry_;
  RunnerConfig config_;
  std::string log_dir_;
  Device device_ = kCpu;
  dist::RankInfo info_;
  std::optional<FileLock> claim_;  // before what may still save
  std::unique_ptr<Ranks> ranks_;   // before what uses its groups
  std::unique_ptr<DataLoader> train_loader_;
  std::unique_ptr<DataLoader> val_loader_;
  std::vector<std::unique_ptr<Metric>> val_metrics_;
  std::unique_ptr<BaseStrategy> strategy_;
  std::vector<std::unique_ptr<Hook>> hooks_;
  RunProgress progress_;
};

}  // namespace castor::strategy
