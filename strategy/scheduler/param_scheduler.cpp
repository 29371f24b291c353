// The window, the two counts and the saved state of every scheduler.
//
// Delicate: a step computes the values of all groups before it writes any, so that a schedule that breaks down leaves
// every group and both counts as they were; loading a state likewise reads everything before it changes anything.
#include "strategy/scheduler/param_scheduler.h"

#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "core/base/log.h"
#include "strategy/scheduler/state_fields.h"

namespace castor::strategy {
namespace {

std::string initial_name(const std::string& param_name) { return "initial_" + param_name; }

std::string names_in(const autograd::ParamGroup& group) {
  std::string list;
  for (const auto& [name, value] : group.values) list += (list.empty() ? "" : ", ") + name;
  return list.empty() ? "nothing" : list;
}

// A whole step count, or a ConfigError for a fraction that no conversion removes.
std::int64_t whole_step(std::string_view type, std::string_view option, double value) {
  if (value != std::trunc(value)) {
    throw ConfigError(cat(type, ": ", option, " must be whole unless convert_to_iter_based is set, got ", value),
                      std::string(option));
  }
  return static_cast<std::int64_t>(value);
}

void require_params(std::string_view type, const std::string& param_name,
                    const std::vector<autograd::ParamGroup>& groups) {
  if (groups.empty()) {
    throw ConfigError(cat(type, ": the optimizer has no parameter groups to schedule"), "param_name");
  }
  for (std::size_t i = 0; i < groups.size(); ++i) {
    if (!groups[i].values.contains(param_name)) {
      throw ConfigError(
          cat(type, ": group ", i, " of the optimizer has no ", param_name, "; it has ", names_in(groups[i])),
          "param_name");
    }
  }
}

}  // namespace

double value_for_group(const PerGroup& values, std::size_t group) {
  if (const auto* one = std::get_if<double>(&values)) return *one;
  return std::get<std::vector<double>>(values)[group];
}

void require_one_per_group(std::string_view type, std::string_view option, const PerGroup& values, std::size_t groups) {
  const auto* list = std::get_if<std::vector<double>>(&values);
  if (list == nullptr || list->size() == groups) return;
  throw ConfigError(cat(type, ": ", option, " must be one number or one for each of the optimizer's ", groups,
                        " groups, got ", list->size()),
                    std::string(option));
}

std::int64_t in_iterations(std::string_view option, std::int64_t epochs, std::int64_t epoch_length) {
  if (epochs <= kMaxSteps / epoch_length) return epochs * epoch_length;
  throw ConfigError(cat(option, ": ", epochs, " epochs of ", epoch_length, " iterations are more than ", kMaxSteps),
                    std::string(option));
}

Window resolve_window(std::string_view type, const WindowConfig& config, const SchedulerContext& context,
                      const std::function<void(std::int64_t)>& scale) {
  const std::optional<std::int64_t> run_length = config.by_epoch ? context.max_epochs : context.max_iters;
  double begin = config.begin;
  double end = kUnboundedEnd;
  if (config.end) {
    end = *config.end;
  } else if (run_length) {
    end = static_cast<double>(*run_length);
  }
  Window window;
  window.last_step = config.last_step;
  window.by_epoch = config.by_epoch;
  window.verbose = config.verbose;
  if (config.convert_to_iter_based) {
    if (!scale) {
      throw ConfigError(cat(type, ": cannot be converted to iterations; it is stepped by validations"),
                        "convert_to_iter_based");
    }
    const std::int64_t length = context.epoch_length.value_or(0);
    if (length <= 0) {
      throw ConfigError(cat(type, ": convert_to_iter_based needs the iterations of an epoch, a count above 0, and ",
                            context.epoch_length ? cat("got ", length) : std::string("the data gives none"),
                            "; give by_epoch: false and counts in iterations instead"),
                        "convert_to_iter_based");
    }
    scale(length);
    begin = std::trunc(begin * static_cast<double>(length));
    if (end != kUnboundedEnd) end = std::trunc(end * static_cast<double>(length));
    if (end > static_cast<double>(kMaxSteps)) {
      throw ConfigError(cat(type, ": end: the window is longer than ", kMaxSteps, " iterations"), "end");
    }
    window.by_epoch = false;
  }
  window.begin = whole_step(type, "begin", begin);
  window.end = whole_step(type, "end", end);
  if (window.end <= window.begin) {
    throw ConfigError(cat(type, ": end must be above begin, got begin ", window.begin, ", end ", window.end,
                          config.end ? "" : " (the run's length)", window.by_epoch ? " epochs" : " iterations"),
                      config.end ? "end" : "begin");
  }
  return window;
}

std::string momentum_param(std::string_view type, const std::vector<autograd::ParamGroup>& groups) {
  for (const char* candidate : {"momentum", "beta1"}) {
    bool everywhere = !groups.empty();
    for (const autograd::ParamGroup& group : groups) everywhere = everywhere && group.values.contains(candidate);
    if (everywhere) return candidate;
  }
  throw ConfigError(cat(type, ": the optimizer has neither momentum nor beta1 to schedule; its groups have ",
                        groups.empty() ? std::string("nothing") : names_in(groups.front())),
                    "type");
}

ParamScheduler::ParamScheduler(const SchedulerContext& context, std::string type, std::string param_name,
                               const Window& window)
    : groups_(context.groups),
      type_(std::move(type)),
      param_name_(std::move(param_name)),
      window_(window),
      optimizer_steps_(context.optimizer_steps) {
  require_params(type_, param_name_, groups_);
  if (optimizer_steps_) optimizer_steps_at_start_ = optimizer_steps_();
}

void ParamScheduler::record_initial_values() {
  const std::string initial = initial_name(param_name_);
  base_values_.clear();
  for (std::size_t i = 0; i < groups_.size(); ++i) {
    auto& values = groups_[i].values;
    if (window_.last_step == -1) {
      values.try_emplace(initial, value(i));
    } else if (!values.contains(initial)) {
      throw ConfigError(
          cat(type_, ": last_step ", window_.last_step, " resumes a schedule, but group ", i,
              " of the optimizer has no ", initial, "; load the optimizer's state first or set last_step to -1"),
          "last_step");
    }
    base_values_.push_back(values.find(initial)->second);
  }
}

void ParamScheduler::step() {
  if (global_step_ == 0) warn_if_before_optimizer();
  const std::int64_t now = global_step_ + 1;
  if (window_.begin <= now && now < window_.end) {
    const std::int64_t shape_step = window_.last_step + 1;
    std::vector<double> next(groups_.size());
    for (std::size_t i = 0; i < groups_.size(); ++i) {
      next[i] = next_value(i, shape_step);
      if (!std::isfinite(next[i])) {
        throw ConfigError(cat(type_, ": ", param_name_, " of group ", i, " has no finite value at step ", shape_step,
                              " (from ", value(i), "); the options allow no such step"),
                          "type");
      }
    }
    for (std::size_t i = 0; i < groups_.size(); ++i) {
      value(i) = next[i];
      print_value(i, next[i], now);
    }
    window_.last_step = shape_step;
    values_set(shape_step);
  }
  global_step_ = now;
  remember_last_values();
}

void ParamScheduler::step(const Metrics&) { throw InternalError(cat(type_, ": was stepped with metrics, takes none")); }

void ParamScheduler::values_set(std::int64_t) {}

double& ParamScheduler::value(std::size_t group) { return groups_[group].values.find(param_name_)->second; }

double ParamScheduler::value(std::size_t group) const { return groups_[group].values.find(param_name_)->second; }

void ParamScheduler::remember_last_values() {
  last_value_.clear();
  for (std::size_t i = 0; i < groups_.size(); ++i) last_value_.push_back(value(i));
}

void ParamScheduler::print_value(std::size_t group, double value, std::int64_t at_step) const {
  if (!window_.verbose) return;
  char digits[32];
  std::snprintf(digits, sizeof digits, "%.4e", value);
  logger().info(type_, ": ", param_name_, " of group ", group, " is now ", digits, " (",
                window_.by_epoch ? "epoch " : "iter ", at_step, ")");
}

void ParamScheduler::warn_if_before_optimizer() const {
  if (!optimizer_steps_ || optimizer_steps_() > optimizer_steps_at_start_) return;
  logger().warning(type_, ": stepped before the optimizer, so the first ", param_name_,
                   " of the schedule is never used; step the optimizer first, then the scheduler");
}

Json ParamScheduler::state_dict() const {
  Json state = Json::object();
  StateWriter out(state);
  out.field("type", type_);
  out.field("param_name", param_name_);
  out.field("begin", window_.begin);
  out.field("end", window_.end);
  out.field("by_epoch", window_.by_epoch);
  out.field("verbose", window_.verbose);
  out.field("last_step", window_.last_step);
  out.field("_global_step", global_step_);
  out.field("base_values", base_values_);
  out.field("_last_value", last_value_);
  write_own(out);
  return state;
}

void ParamScheduler::load_state_dict(const Json& state) {
  StateReader in("state of " + type_, state);
  std::string type;
  std::string param_name;
  Window window;
  std::int64_t global_step = 0;
  std::vector<double> base_values;
  std::vector<double> last_value;
  in.field("type", type);
  if (type != type_) in.fail("type", cat("expected ", type_, ", got ", type));
  in.field("param_name", param_name);
  in.steps("begin", window.begin, 0);
  in.steps("end", window.end, window.begin + 1);
  in.field("by_epoch", window.by_epoch);
  in.field("verbose", window.verbose);
  in.steps("last_step", window.last_step, -1);
  in.steps("_global_step", global_step, -1);
  in.field("base_values", base_values);
  in.field("_last_value", last_value);
  for (const auto& [name, list] : {std::pair{"base_values", &base_values}, std::pair{"_last_value", &last_value}}) {
    if (list->size() != groups_.size()) {
      in.fail(name, cat("expected one value for each of ", groups_.size(), " groups, got ", list->size()));
    }
  }
  require_params(type_, param_name, groups_);
  const std::function<void()> put_own = read_own(in, window);
  in.finish();

  param_name_ = std::move(param_name);
  window_ = window;
  global_step_ = global_step;
  base_values_ = std::move(base_values);
  last_value_ = std::move(last_value);
  put_own();
}

}  // namespace castor::strategy
