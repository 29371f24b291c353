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
  std::int64_t items = 0;         ///< tokens or samples of the last micro-batch
  const char* item_name = "samples";
  std::optional<double> learning_rate;  ///< of the first group, in the last iteration; unset if its optimizer has none
  StepResult last;                      ///< of the last iteration
  std::map<std::string, double> metrics;  ///< of the last validation
  bool was_stopped = false;               ///< Ctrl-C or SIGTERM ended the run early
};

/// What hooks may do to the run.
class RunControl {
 public:
  virtual ~RunControl() = default;
  virtual BaseStrategy& strategy() = 0;
  virtual const RunProgress& progress() const = 0;
  virtual const std::string& work_dir() const = 0;
  virtual const std::string& log_dir() const = 0;
  /// Saves the weights as work_dir/name.
  virtual void save(const std::string& name) = 0;
};

/// Derive, override what is needed, register under a type name.
class Hook {
 public:
  virtual ~Hook() = default;
  virtual void before_run(RunControl&) {}
  virtual void after_train_iter(RunControl&) {}
  virtual void after_train_epoch(RunControl&) {}
  virtual void after_val(RunControl&) {}   ///< results are in progress().metrics
  virtual void after_test(RunControl&) {}  ///< the same; nothing was trained
  virtual void after_run(RunControl&) {}
};

}  // namespace castor::strategy
