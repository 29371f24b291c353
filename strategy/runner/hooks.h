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
}

/// Saves weights every `interval` epochs or iterations, and at the end.
class CheckpointHook final : public Hook {
 public:
  struct Config {
    std::int64_t interval = -1;
    std::optional<bool> by_epoch;
    bool save_last = true;
  };
  explicit CheckpointHook(const Config& config) : config_(config) {}
  void after_train_iter(RunControl& run) override;
  void after_train_epoch(RunControl& run) override;
  void after_run(RunControl& run) override;

 private:
  void save(RunControl& run);
  bool by_epoch(const RunControl& run) const { return config_.by_epoch.value_or(run.progress().by_epoch); }

  Config config_;
  std::int64_t saved_iter_ = -1;
};

template <class V>
void describe(V& v, CheckpointHook::Config& c) {
  v.field("interval", c.interval, "epochs or iterations between two saves; -1: only the last", at_least(-1));
  v.field("by_epoch", c.by_epoch, "what interval counts; as the loop counts when left out");
  v.field("save_last", c.save_last, "save when the run ends or is stopped");
  for (const char* name : {"save_optimizer", "save_param_scheduler"})
    v.retired(name, ConfigNode(true), "not in this version: weights only are saved");
  v.retired("max_keep_ckpts", ConfigNode(-1), "not in this version: nothing is deleted");
  for (const char* name :
       {"save_best", "rule", "out_dir", "filename_tmpl", "published_keys", "save_begin", "greater_keys", "less_keys"}) {
    v.refuse(name, "not in this version");
  }
}

}  // namespace castor::strategy
