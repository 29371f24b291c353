// When a metric counts as better, and when patience ends. A metric that is not a number is never better.
#include "strategy/scheduler/plateau.h"

#include <algorithm>
#include <utility>

#include "strategy/scheduler/state_fields.h"

namespace castor::strategy {
namespace {

constexpr double kWorst = 1e9;  // mmengine's infinity, finite so that a relative threshold of it is defined

Window checked_window(const SchedulerContext& context, const std::string& type, const ReduceOnPlateauConfig& config) {
  validate_options(type, config);
  require_one_per_group(type, "min_value", config.min_value, context.groups.size());
  return resolve_window(type, config, context, nullptr);
}

}  // namespace

PlateauScheduler::PlateauScheduler(const SchedulerContext& context, const std::string& type,
                                   const std::string& param_name, const Config& config)
    : ParamScheduler(context, type, param_name, checked_window(context, type, config)), config_(config) {
  counts_.best = config_.rule == "less" ? kWorst : -kWorst;
  global_step_ = 0;
  record_initial_values();
  remember_last_values();
}

void PlateauScheduler::step() { ++global_step_; }

void PlateauScheduler::step(const Metrics& metrics) {
  if (window_.begin <= global_step_ && global_step_ < window_.end) {
    const auto found = metrics.find(config_.monitor);
    if (found == metrics.end()) {
      std::string names;
      for (const auto& [name, value] : metrics) names += (names.empty() ? "" : ", ") + name;
      throw ConfigError(cat(type_, ": monitor is ", config_.monitor, ", but the validation gave ",
                            names.empty() ? std::string("no metrics") : names),
                        "monitor");
    }
    ++window_.last_step;
    if (is_better(found->second)) {
      counts_.best = found->second;
      counts_.num_bad_epochs = 0;
    } else {
      ++counts_.num_bad_epochs;
    }
    if (counts_.cooldown_counter > 0) {
      --counts_.cooldown_counter;
      counts_.num_bad_epochs = 0;
    }
    if (counts_.num_bad_epochs > config_.patience) {
      reduce();
      counts_.cooldown_counter = config_.cooldown;
      counts_.num_bad_epochs = 0;
    }
  }
  remember_last_values();
}

void PlateauScheduler::reduce() {
  for (std::size_t i = 0; i < groups_.size(); ++i) {
    const double next = next_value(i, window_.last_step);
    if (value(i) - next > config_.eps) {
      value(i) = next;
      print_value(i, next, global_step_);
    }
  }
}

bool PlateauScheduler::is_better(double metric) const {
  const double best = counts_.best;
  const bool relative = config_.threshold_rule == "rel";
  if (config_.rule == "less") return metric < (relative ? best * (1. - config_.threshold) : best - config_.threshold);
  return metric > (relative ? best * (config_.threshold + 1.) : best + config_.threshold);
}

double PlateauScheduler::next_value(std::size_t group, std::int64_t) const {
  return std::max(value(group) * config_.factor, value_for_group(config_.min_value, group));
}

void PlateauScheduler::write_own(StateWriter& out) const {
  Config config = config_;
  own_fields(out, config);
  out.field("best", counts_.best);
  out.field("num_bad_epochs", counts_.num_bad_epochs);
  out.field("cooldown_counter", counts_.cooldown_counter);
}

std::function<void()> PlateauScheduler::read_own(StateReader& in, const Window&) {
  Config config = config_;
  Counts counts;
  own_fields(in, config);
  in.field("best", counts.best);
  in.steps("num_bad_epochs", counts.num_bad_epochs, 0);
  in.steps("cooldown_counter", counts.cooldown_counter, 0);
  validate_options("state of " + type_, config);
  require_one_per_group("state of " + type_, "min_value", config.min_value, groups_.size());
  return [this, config = std::move(config), counts] {
    config_ = config;
    counts_ = counts;
  };
}

}  // namespace castor::strategy
