// The arithmetic of mmengine's shapes. The header says what is delicate: the order of operations is part of the result.
#include "strategy/scheduler/shapes.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

namespace castor::strategy {
namespace {

constexpr double kPi = std::numbers::pi;

double as_double(std::int64_t count) { return static_cast<double>(count); }

double lowest_value(const std::optional<double>& eta_min, const std::optional<double>& eta_min_ratio, double base) {
  return eta_min_ratio ? base * *eta_min_ratio : eta_min.value_or(0.0);
}

// The next point of a half cosine of `length` steps that ends at `lowest`, from the point before it.
double cosine_step(double current, double lowest, std::int64_t step, std::int64_t length) {
  return (1 + std::cos(kPi * as_double(step) / as_double(length))) /
             (1 + std::cos(kPi * as_double(step - 1) / as_double(length))) * (current - lowest) +
         lowest;
}

}  // namespace

void Constant::to_iterations(Config&, std::int64_t) {}

Constant::Constant(Config options, const Window& window)
    : config(std::move(options)), total_iters(window.length() - 1) {}

double Constant::next(const SchedulePoint& at) const {
  if (at.step == 0) return at.current * config.factor;
  if (at.step == total_iters) return at.current * (1.0 / config.factor);
  return at.current;
}

void Linear::to_iterations(Config&, std::int64_t) {}

Linear::Linear(Config options, const Window& window) : config(std::move(options)), total_iters(window.length() - 1) {}

double Linear::next(const SchedulePoint& at) const {
  if (at.step == 0) return at.current * config.start_factor;
  const double slope = config.end_factor - config.start_factor;
  return at.current * (1. + slope / (as_double(total_iters) * config.start_factor + as_double(at.step - 1) * slope));
}

void CosineAnnealing::to_iterations(Config& config, std::int64_t epoch_length) {
  if (config.T_max) config.T_max = in_iterations("T_max", *config.T_max, epoch_length);
}

CosineAnnealing::CosineAnnealing(Config options, const Window& window) : config(std::move(options)) {
  if (!config.T_max) config.T_max = window.length();
  if (!config.eta_min && !config.eta_min_ratio) config.eta_min = 0.0;
}

double CosineAnnealing::next(const SchedulePoint& at) const {
  if (at.step == 0) return at.current;
  const std::int64_t length = *config.T_max;
  const double lowest = lowest_value(config.eta_min, config.eta_min_ratio, at.base);
  // One step past a lowest point the ratio below would be 0 / 0; the cosine's rise is symmetric to its fall.
  const std::int64_t past_fall = at.step - 1 - length;
  if (past_fall % length == 0 && past_fall / length % 2 == 0) {
    return at.current + (at.base - lowest) * (1 - std::cos(kPi / as_double(length))) / 2;
  }
  return cosine_step(at.current, lowest, at.step, length);
}

void CosineRestart::to_iterations(Config& config, std::int64_t epoch_length) {
  for (std::int64_t& period : config.periods) period = in_iterations("periods", period, epoch_length);
}

CosineRestart::CosineRestart(Config options, const Window&) : config(std::move(options)) {}

double CosineRestart::next(const SchedulePoint& at) const {
  std::int64_t start = 0;
  for (std::size_t i = 0; i < config.periods.size(); ++i) {
    const std::int64_t step = at.step - start;
    if (step >= config.periods[i]) {
      start += config.periods[i];
      continue;
    }
    if (step == 0) return at.base * config.restart_weights[i];
    return cosine_step(at.current, lowest_value(config.eta_min, config.eta_min_ratio, at.base), step,
                       config.periods[i]);
  }
  return at.current;  // after the last period
}

void Exponential::to_iterations(Config&, std::int64_t) {}

Exponential::Exponential(Config options, const Window&) : config(std::move(options)) {}

double Exponential::next(const SchedulePoint& at) const {
  return at.step == 0 ? at.current : at.current * config.gamma;
}

void Step::to_iterations(Config& config, std::int64_t epoch_length) {
  config.step_size = in_iterations("step_size", config.step_size, epoch_length);
}

Step::Step(Config options, const Window&) : config(std::move(options)) {}

double Step::next(const SchedulePoint& at) const {
  return at.step == 0 || at.step % config.step_size != 0 ? at.current : at.current * config.gamma;
}

void MultiStep::to_iterations(Config& config, std::int64_t epoch_length) {
  for (std::int64_t& milestone : config.milestones) milestone = in_iterations("milestones", milestone, epoch_length);
}

MultiStep::MultiStep(Config options, const Window&) : config(std::move(options)) {}

double MultiStep::next(const SchedulePoint& at) const {
  return decay_at_milestones(at, config.milestones, config.gamma);
}

double decay_at_milestones(const SchedulePoint& at, const std::vector<std::int64_t>& milestones, double gamma) {
  const auto times = std::count(milestones.begin(), milestones.end(), at.step);
  return times == 0 ? at.current : at.current * std::pow(gamma, as_double(times));
}

void Poly::to_iterations(Config&, std::int64_t) {}

Poly::Poly(Config options, const Window& window) : config(std::move(options)), total_iters(window.length() - 1) {}

double Poly::next(const SchedulePoint& at) const {
  if (at.step == 0) return at.current;
  return (at.current - config.eta_min) * std::pow(1 - 1 / as_double(total_iters - at.step + 1), config.power) +
         config.eta_min;
}

CyclePosition cycle_position(const std::vector<CyclePhase>& phases, std::int64_t step) {
  double start_step = 0;
  for (const CyclePhase& phase : phases) {
    if (as_double(step) <= phase.end_step || &phase == &phases.back()) {
      return {&phase, (as_double(step) - start_step) / (phase.end_step - start_step)};
    }
    start_step = phase.end_step;
  }
  throw InternalError("cycle_position: a cycle has at least one phase");
}

double anneal(std::string_view strategy, double from, double to, double share) {
  if (strategy == "linear") return (to - from) * share + from;
  return to + (from - to) / 2.0 * (std::cos(kPi * share) + 1);
}

double named_value(const autograd::ParamGroup& group, std::string_view name) {
  const auto found = group.values.find(name);
  if (found != group.values.end()) return found->second;
  throw ConfigError(cat("OneCycleLR: a group of the optimizer has no ", name,
                        "; load the optimizer's state first or set last_step to -1"),
                    "last_step");
}

void OneCycle::to_iterations(Config& config, std::int64_t epoch_length) {
  if (config.total_steps) config.total_steps = in_iterations("total_steps", *config.total_steps, epoch_length);
}

OneCycle::OneCycle(Config options, const Window& window) : config(std::move(options)) {
  if (!config.total_steps) config.total_steps = window.length();
  const double total = as_double(*config.total_steps);
  const double rising = config.pct_start * total - 1;
  phases.push_back({rising, "initial_lr", "max_lr"});
  if (config.three_phase) {
    phases.push_back({2 * config.pct_start * total - 2, "max_lr", "initial_lr"});
    phases.push_back({total - 1, "initial_lr", "min_lr"});
  } else {
    phases.push_back({total - 1, "max_lr", "min_lr"});
  }
  if (rising == 0) {
    throw ConfigError(cat("OneCycleLR: pct_start ", config.pct_start, " of ", *config.total_steps,
                          " steps is exactly one step, which cannot rise; use 0 or at least two steps"),
                      "pct_start");
  }
  if (window.bounded() && window.length() - 1 > *config.total_steps) {
    throw ConfigError(cat("OneCycleLR: the window goes on to step ", window.length() - 1, ", the cycle ends at ",
                          *config.total_steps, "; raise total_steps or set end"),
                      "total_steps");
  }
}

void OneCycle::prepare(std::vector<autograd::ParamGroup>& groups, std::int64_t last_step) const {
  require_one_per_group("OneCycleLR", "eta_max", config.eta_max, groups.size());
  if (last_step != -1) return;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    auto& values = groups[i].values;
    const double eta_max = value_for_group(config.eta_max, i);
    values["initial_lr"] = eta_max / config.div_factor;
    values["max_lr"] = eta_max;
    values["min_lr"] = eta_max / config.div_factor / config.final_div_factor;
  }
}

double OneCycle::next(const SchedulePoint& at) const {
  if (at.step > *config.total_steps) {
    throw ConfigError(cat("OneCycleLR: the cycle has ", *config.total_steps, " steps, but step ", at.step,
                          " was asked for; raise total_steps or lower end"),
                      "total_steps");
  }
  const CyclePosition position = cycle_position(phases, at.step);
  return anneal(config.anneal_strategy, named_value(at.group, position.phase->from),
                named_value(at.group, position.phase->to), position.share);
}

}  // namespace castor::strategy
