// The hooks that every run has: LoggerHook and CheckpointHook, with mmengine's names and defaults.
#pragma once

#include <chrono>
#include <deque>
#include <memory>
#include <optional>

#include "core/base/console.h"
#include "core/base/file.h"
#include "strategy/config/field.h"
#include "strategy/runner/hook.h"

namespace castor::strategy {

/// Writes a line every `interval` iterations, a JSON line for each into vis_data/scalars.json, the results of a test
/// into <timestamp>.json beside the log, and keeps a progress bar on a terminal.
class LoggerHook final : public Hook {
 public:
  struct Config {
    std::int64_t interval = 10;
    bool parameter_norms = false;
  };
  explicit LoggerHook(const Config& config) : config_(config) {}
  void before_run(RunControl& run) override;
  void after_train_iter(RunControl& run) override;
  void after_val(RunControl& run) override;
  void after_test(RunControl& run) override;
  void after_run(RunControl& run) override;

 private:
  void write_scalars(RunControl& run, const std::map<std::string, double>& scalars);

  Config config_;
  std::unique_ptr<ProgressBar> bar_;
  std::deque<RunProgress> window_;  // the iterations since the last line
  std::optional<File> scalars_;
};

template <class V>
void describe(V& v, LoggerHook::Config& c) {
  v.field("interval", c.interval, "iterations between two lines; values are means over them", at_least(1));
  v.field("parameter_norms", c.parameter_norms,
          "scalars.json also says the norm of each parameter's gradient in the last iteration, before clipping, as "
          "grad_norm/NAME; needs a limit on the norm, or fp16");
}

/// Saves the training state every `interval` epochs or iterations, at the end, and after a validation that is among the
/// best. A save asked for inside an accumulation window happens at its end.
class CheckpointHook final : public Hook {
 public:
  struct Config {
    std::int64_t interval = -1;
    std::optional<bool> by_epoch;
    bool save_last = true;
    bool save_begin = false;
    bool save_optimizer = true;
    bool save_param_scheduler = true;
    bool async_save = false;
    std::int64_t max_keep_ckpts = -1;
    std::optional<std::int64_t> keep_every;
    std::optional<std::string> save_best;
    std::optional<std::string> rule;
    std::int64_t keep_best = 1;
  };
  explicit CheckpointHook(const Config& config) : config_(config) {}
  void before_run(RunControl& run) override;
  void after_val(RunControl& run) override;
  void after_iteration(RunControl& run) override;
  void after_run(RunControl& run) override;

 private:
  void ask(RunControl& run);
  void save(RunControl& run);
  SaveRules rules() const;
  bool by_epoch(const RunControl& run) const { return config_.by_epoch.value_or(run.progress().by_epoch); }

  Config config_;
  bool is_due_ = false;        // a save waits for the end of an accumulation window
  bool is_score_due_ = false;  // so does that of a validation's score, which is in the run's metrics until then
  std::int64_t saved_iter_ = -1;
  std::optional<bool> greater_is_better_;  // unknown with save_best: auto until the first validation
};

template <class V>
void describe(V& v, CheckpointHook::Config& c) {
  v.field("interval", c.interval, "epochs or iterations between two saves; -1: only the last", at_least(-1));
  v.field("by_epoch", c.by_epoch, "what interval counts; as the loop counts when left out");
  v.field("save_last", c.save_last, "save when the run ends or is stopped");
  v.field("save_begin", c.save_begin, "save before the first step, too");
  v.field("save_optimizer", c.save_optimizer,
          "save the optimizer's states; without them a run cannot be resumed as it was");
  v.field("save_param_scheduler", c.save_param_scheduler, "save the schedules' states");
  v.field("async_save", c.async_save, "copy the state and write it in the background while training goes on");
  v.field("max_keep_ckpts", c.max_keep_ckpts, "checkpoints to keep, the newest ones; -1: all", at_least(-1));
  v.field("keep_every", c.keep_every, "with max_keep_ckpts: keep those whose number is a multiple of this, too",
          at_least(1));
  v.field("save_best", c.save_best,
          "save after a validation that is among the best by this metric; auto: by the first one");
  v.field("rule", c.rule, "which values of that metric are better; guessed from its name when left out",
          one_of({"greater", "less"}));
  v.field("keep_best", c.keep_best, "with save_best and max_keep_ckpts: how many of the best to keep", at_least(1));
  v.check(
      "max_keep_ckpts", [&] { return c.max_keep_ckpts != 0; }, "is a count of at least 1, or -1 for all");
  v.check(
      "keep_every", [&] { return !c.keep_every || c.max_keep_ckpts > 0; }, "needs max_keep_ckpts");
  v.refuse("out_dir", "checkpoints lie in work_dir, where resume looks for them");
  v.refuse("filename_tmpl", "checkpoints are called iter_N or epoch_N, so that resume and castor ckpt know them");
  v.refuse("published_keys", "castor ckpt export writes weights for others");
  v.refuse("greater_keys", "say rule: greater");
  v.refuse("less_keys", "say rule: less");
}

}  // namespace castor::strategy
