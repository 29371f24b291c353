// What may watch a run: hooks, called at fixed points by the loops, and what they see of it.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "strategy/strategy.h"

namespace castor::strategy {

/// The state of a run as hooks and the runner share it. Counts are of what is done.
struct RunProgress {
  bool by_epoch = true;
  std::int64_t epoch = 0;
  std::int64_t max_epochs = 0;    ///< 0 when counting iterations
  std::int64_t iter = 0;          ///< micro-steps over the whole run
  std::int64_t max_iters = 0;     ///< micro-steps of the whole run
  std::int64_t epoch_length = 0;  ///< micro-steps an epoch
  double data_seconds = 0;        ///< of the last iteration: making the batch
  double step_seconds = 0;        ///< of the last iteration, batch included
  std::int64_t items = 0;         ///< tokens or samples of the last micro-batch, of all ranks
  const char* item_name = "samples";
  std::optional<double> learning_rate;  ///< of the first group, in the last iteration; unset if its optimizer has none
  StepResult last;                      ///< of the last iteration
  std::map<std::string, double> metrics;  ///< of the last validation
  /// The validation after this iteration is still to come: not yet done, or a stop came first.
  bool is_validation_due = false;
  bool was_stopped = false;  ///< Ctrl-C or SIGTERM ended the run early
};

/// How a hook wants the run saved.
struct SaveRules {
  bool save_optimizer = true;
  bool save_param_scheduler = true;
  bool asynchronous = false;
  formats::Retention retention;  ///< applied once the checkpoint is committed
};

/// What hooks may do to the run.
class RunControl {
 public:
  virtual ~RunControl() = default;
  virtual BaseStrategy& strategy() = 0;
  virtual const RunProgress& progress() const = 0;
  /// Where the model computes.
  virtual Device device() const = 0;
  virtual const std::string& work_dir() const = 0;
  virtual const std::string& log_dir() const = 0;
  /// False inside an accumulation window, whose sums are not saved.
  virtual bool can_save() = 0;
  /// True on all ranks if it is on any; all of them must ask.
  ///   label  what is asked, the same on all ranks, for errors and records
  virtual bool on_any_rank(bool value, const std::string& label) = 0;
  /// Saves the training state as work_dir/name; all ranks call it. Throws as BaseStrategy::save_checkpoint.
  virtual void save(const std::string& name, const SaveRules& rules) = 0;
};

/// Derive, override what is needed, register under a type name.
class Hook {
 public:
  virtual ~Hook() = default;
  virtual void before_run(RunControl&) {}
  virtual void before_train_iter(RunControl&) {}  ///< before its batch is made
  virtual void after_train_iter(RunControl&) {}
  virtual void after_train_epoch(RunControl&) {}
  virtual void after_val(RunControl&) {}   ///< results are in progress().metrics
  virtual void after_test(RunControl&) {}  ///< the same; nothing was trained
  /// After an iteration and the validation that was due after it, if any: all there is to an iteration is done. Where a
  /// stop came before the validation it is called then, and once more after the resumed run has made up for it.
  virtual void after_iteration(RunControl&) {}
  virtual void after_run(RunControl&) {}
  virtual void before_save_checkpoint(RunControl&, CheckpointContents&) {}  ///< may add to what is saved
  virtual void after_load_checkpoint(RunControl&, CheckpointContents&) {}   ///< before it goes into the model
};

}  // namespace castor::strategy
