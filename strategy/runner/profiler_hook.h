// ProfilerHook: what iterations waited for, where the optimizer's states lie, and the timeline as a Chrome trace; under
// mmengine's name.
//
// Delicate: an iteration is seen whole, from before its batch is made; what it left to the next one (Gemini's late
// steps) is that one's. Ranks trace themselves; the main rank's lines are the log's.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/device/trace.h"
#include "strategy/config/field.h"
#include "strategy/runner/hook.h"

namespace castor::strategy {

/// Traces `profile_times` iterations or epochs after the first `skip_first` iterations, then says what it saw.
class ProfilerHook final : public Hook {
 public:
  struct Config {
    std::optional<bool> by_epoch;
    std::int64_t profile_times = 1;
    std::int64_t skip_first = 2;
    std::optional<std::string> json_trace_path;
  };
  explicit ProfilerHook(const Config& config) : config_(config) {}
  void before_train_iter(RunControl& run) override;
  void after_train_iter(RunControl& run) override;
  void after_train_epoch(RunControl& run) override;
  void after_run(RunControl& run) override;

 private:
  void finish(RunControl& run);
  bool by_epoch(const RunControl& run) const { return config_.by_epoch.value_or(run.progress().by_epoch); }

  Config config_;
  std::int64_t begun_ = 0;  // iterations of this process
  std::int64_t times_ = 0;  // whole iterations or epochs that were traced
  bool is_over_ = false;
  std::vector<std::string> seen_;  // the traced iterations
  std::unique_ptr<Trace> trace_;   // while iterations are traced
  std::unique_ptr<ObserverScope> ops_;
  std::unique_ptr<TraceSpan> iteration_;
};

template <class V>
void describe(V& v, ProfilerHook::Config& c) {
  v.field("by_epoch", c.by_epoch, "what profile_times counts; as the loop counts when left out");
  v.field("profile_times", c.profile_times, "iterations or epochs that are traced", at_least(1));
  v.field("skip_first", c.skip_first, "iterations before the first that is traced: they take memory and make plans",
          at_least(0));
  v.field("json_trace_path", c.json_trace_path,
          "writes the timeline there, for chrome://tracing and Perfetto; other ranks' with .RANK behind it");
  const char* const always = "the run's device, copies, exchanges and the host's steps are always traced";
  v.retired("activity_with_cpu", ConfigNode(true), always);
  v.retired("activity_with_cuda", ConfigNode(false), always);
  v.retired("record_shapes", ConfigNode(false), "castor plan knows them");
  v.retired("profile_memory", ConfigNode(false), "the plan and its audit have it by category");
  v.retired("with_stack", ConfigNode(false), "there is no Python stack");
  v.retired("with_flops", ConfigNode(false), "castor plan has them by op");
  v.refuse("schedule", "say skip_first and profile_times");
  v.refuse("on_trace_ready", "the log has the table; json_trace_path writes the timeline");
}

}  // namespace castor::strategy
