// Validation and test: passes over data without gradients, whose metrics are those of all ranks.
//
// Delicate: a sharded model gathers on all ranks, so ranks without data of their own run along.
#include <algorithm>

#include "core/base/console.h"
#include "core/base/interrupt.h"
#include "core/base/log.h"
#include "strategy/checkpoint.h"
#include "strategy/runner/runner.h"
#include "strategy/source/source.h"

namespace castor::strategy {

bool Runner::evaluate(const DataLoader& loader, const std::vector<std::unique_ptr<Metric>>& metrics, const char* label,
                      bool can_break_off, const std::function<Tensor(const autograd::Batch&)>& step) {
  for (const auto& metric : metrics) metric->reset();
  std::optional<ProgressBar> bar;
  if (is_main()) bar.emplace(Console::standard_output(), label, loader.length());
  for (std::int64_t i = 0; i < loader.length(); ++i) {
    const autograd::Batch batch = loader.at(0, i);
    if (batch.inputs.size(0) > 0) {
      const Tensor predictions = step(batch);
      for (const auto& metric : metrics) metric->process(batch, predictions);
    } else if (ranks_ != nullptr) {
      // The tail of the data went to other ranks, whose forward may gather a sharded model's weights: from here, too.
      constexpr std::int64_t kAnySample[] = {0};
      step(loader.dataset().batch(kAnySample));
    }
    if (bar) bar->update(i + 1, "");
    // All ranks stop at the same batch, or some would wait for others' parts of the weights.
    if (can_break_off && on_any_rank(stop_requested(), "stop requested")) {
      logger().warning(label, ": stopped after ", i + 1, " of ", loader.length(), " batches; there is no result");
      return false;
    }
  }
  if (ranks_ != nullptr) {
    for (const auto& metric : metrics) {
      const std::vector<double> own = metric->sums();
      const Tensor all = Tensor::from_values(own, {static_cast<std::int64_t>(own.size())});
      ranks_->world().all_reduce(all, "sums of a metric");
      metric->set_sums(all.to_vector<double>());
    }
  }
  progress_.metrics.clear();
  for (const auto& metric : metrics) progress_.metrics.merge(metric->compute());
  return true;
}

bool Runner::can_break_off_validation() {
  const auto& schedulers = strategy_->param_schedulers();
  return can_save() || std::none_of(schedulers.begin(), schedulers.end(),
                                    [](const auto& scheduler) { return scheduler->needs_metrics(); });
}

bool Runner::validate() {
  const auto step = [this](const autograd::Batch& batch) { return strategy_->val_step(batch); };
  if (!evaluate(*val_loader_, val_metrics_, "validate", can_break_off_validation(), step)) return false;
  progress_.is_validation_due = false;
  for (auto& scheduler : strategy_->param_schedulers()) {
    if (scheduler->needs_metrics()) scheduler->step(Metrics(progress_.metrics.begin(), progress_.metrics.end()));
  }
  for (auto& hook : hooks_) hook->after_val(*this);
  return true;
}

std::map<std::string, double> Runner::test() {
  if (!config_.test_dataloader)
    throw ConfigError("the config tests nothing: give test_dataloader, test_cfg and test_evaluator", "test_cfg");
  join_job();
  set_up_environment();
  progress_ = {};
  const auto loader = make_loader(*config_.test_dataloader, false);
  const auto metrics = make_metrics(config_.test_evaluator);
  strategy_ = registry_.strategies.build(config_.strategy, device_, seed(), comm());
  PrepareOptions preparing;
  preparing.dispatch.init_weights_for_test_or_val = false;  // all of them are loaded
  strategy_->prepare(model_factory(), preparing);
  const std::string weights = config_.load_from ? *config_.load_from : find_last_checkpoint(config_.work_dir);
  LoadOptions options;
  options.strict = true;
  load_weights(strategy_->model(), weights, options);
  logger().info("weights loaded from ", shown_source(weights));
  make_hooks();
  for (auto& hook : hooks_) hook->before_run(*this);
  const bool is_complete = evaluate(*loader, metrics, "test", true,
                                    [this](const autograd::Batch& batch) { return strategy_->test_step(batch); });
  if (is_complete) {
    for (auto& hook : hooks_) hook->after_test(*this);
  }
  for (auto& hook : hooks_) hook->after_run(*this);
  return is_complete ? progress_.metrics : std::map<std::string, double>{};
}

}  // namespace castor::strategy
