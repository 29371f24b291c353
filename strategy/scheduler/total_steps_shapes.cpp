// The arithmetic of ColossalAI's shapes, in its order of operations. The header says what is delicate.
#include "strategy/scheduler/total_steps_shapes.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace castor::strategy {
namespace {

double as_double(std::int64_t count) { return static_cast<double>(count); }

void total_to_iterations(TotalStepsConfig& config, std::int64_t epoch_length) {
  if (config.total_steps) config.total_steps = in_iterations("total_steps", *config.total_steps, epoch_length);
}

void fill_total(TotalStepsConfig& config, const Window& window) {
  if (!config.total_steps) config.total_steps = window.length();
}

void require_steps_after(std::string_view type, const TotalStepsConfig& config, std::int64_t warmup_steps) {
  if (warmup_steps < *config.total_steps) return;
  throw ConfigError(cat(type, ": warmup_steps must be below total_steps ", *config.total_steps, ", got ", warmup_steps),
                    "warmup_steps");
}

void require_milestones_inside(std::string_view type, const MultiStepTotalConfig& config) {
  for (std::int64_t milestone : config.milestones) {
    if (milestone <= *config.total_steps) continue;
    throw ConfigError(cat(type, ": milestones must lie within total_steps ", *config.total_steps, ", got ", milestone),
                      "milestones");
  }
}

// mmengine's cosine is the same recursion as ColossalAI's; `step` counts from its own start.
double cosine(const SchedulePoint& at, std::int64_t step, std::int64_t length, double eta_min) {
  if (length == 0) return at.current;  // nothing is left to fall over
  CosineAnnealingConfig config;
  config.T_max = length;
  config.eta_min = eta_min;
  return CosineAnnealing(std::move(config), Window{}).next({at.current, at.base, step, at.group});
}

double polynomial(const PolynomialConfig& config, double base, std::int64_t step, std::int64_t total) {
  return (base - config.end_lr) * std::pow(1 - as_double(std::min(step, total)) / as_double(total), config.power) +
         config.end_lr;
}

std::int64_t share_of(std::int64_t steps, double share) { return static_cast<std::int64_t>(as_double(steps) * share); }

OneCycleConfig as_one_cycle(const OneCycleTotalConfig& config) {
  OneCycleConfig cycle;
  cycle.total_steps = config.total_steps;
  cycle.pct_start = config.pct_start;
  cycle.anneal_strategy = config.anneal_strategy;
  cycle.div_factor = config.div_factor;
  cycle.final_div_factor = config.final_div_factor;
  return cycle;
}

double* momentum_of(autograd::ParamGroup& group) {
  for (const char* name : {"momentum", "beta1"}) {
    const auto found = group.values.find(name);
    if (found != group.values.end()) return &found->second;
  }
  return nullptr;
}

}  // namespace

double Stages::early_value(const SchedulePoint& at) const {
  return at.step < warmup ? as_double(at.step + 1) / as_double(warmup) * at.base : at.base;
}

void CosineTotal::to_iterations(Config& config, std::int64_t epoch_length) {
  total_to_iterations(config, epoch_length);
}

CosineTotal::CosineTotal(Config options, const Window& window) : config(std::move(options)) {
  fill_total(config, window);
}

double CosineTotal::next(const SchedulePoint& at) const {
  return cosine(at, at.step, *config.total_steps, config.eta_min);
}

void CosineWarmup::to_iterations(Config& config, std::int64_t epoch_length) {
  total_to_iterations(config, epoch_length);
  config.warmup_steps = in_iterations("warmup_steps", config.warmup_steps, epoch_length);
}

CosineWarmup::CosineWarmup(Config options, const Window& window) : config(std::move(options)) {
  fill_total(config, window);
  require_steps_after(kName, config, config.warmup_steps);
  stages.warmup = config.warmup_steps;
}

double CosineWarmup::next(const SchedulePoint& at) const {
  if (at.step < stages.main_begin()) return stages.early_value(at);
  return cosine(at, at.step - stages.main_begin(), *config.total_steps - config.warmup_steps, config.eta_min);
}

void FlatAnnealing::to_iterations(Config& config, std::int64_t epoch_length) {
  total_to_iterations(config, epoch_length);
}

FlatAnnealing::FlatAnnealing(Config options, const Window& window) : config(std::move(options)) {
  fill_total(config, window);
  stages.flat = share_of(*config.total_steps, config.pct_start);
}

double FlatAnnealing::next(const SchedulePoint& at) const {
  if (at.step < stages.main_begin()) return stages.early_value(at);
  return cosine(at, at.step - stages.main_begin(), *config.total_steps - stages.flat, 0);
}

void FlatAnnealingWarmup::to_iterations(Config& config, std::int64_t epoch_length) {
  total_to_iterations(config, epoch_length);
  config.warmup_steps = in_iterations("warmup_steps", config.warmup_steps, epoch_length);
}

FlatAnnealingWarmup::FlatAnnealingWarmup(Config options, const Window& window) : config(std::move(options)) {
  fill_total(config, window);
  require_steps_after(kName, config, config.warmup_steps);
  stages.warmup = config.warmup_steps;
  stages.flat = share_of(*config.total_steps - config.warmup_steps, config.pct_start);
}

double FlatAnnealingWarmup::next(const SchedulePoint& at) const {
  if (at.step < stages.main_begin()) return stages.early_value(at);
  const std::int64_t step = at.step - stages.main_begin();
  const std::int64_t length = *config.total_steps - stages.main_begin();
  if (step == 0) return at.base;  // the cosine starts from the base value, whatever the rate has become
  return cosine(at, step, length, config.eta_min);
}

void LinearWarmup::to_iterations(Config& config, std::int64_t epoch_length) {
  total_to_iterations(config, epoch_length);
  config.warmup_steps = in_iterations("warmup_steps", config.warmup_steps, epoch_length);
}

LinearWarmup::LinearWarmup(Config options, const Window& window) : config(std::move(options)) {
  fill_total(config, window);
  require_steps_after(kName, config, config.warmup_steps);
  if (window.bounded() && window.length() - 1 > *config.total_steps) {
    throw ConfigError(cat(kName, ": the window goes on to step ", window.length() - 1, ", the schedule is 0 at ",
                          *config.total_steps, "; raise total_steps or set end"),
                      "total_steps");
  }
}

double LinearWarmup::next(const SchedulePoint& at) const {
  if (at.step > *config.total_steps) {
    throw ConfigError(cat(kName, ": the schedule has ", *config.total_steps, " steps, but step ", at.step,
                          " was asked for; raise total_steps or set end"),
                      "total_steps");
  }
  if (at.step < config.warmup_steps) return as_double(at.step + 1) / as_double(config.warmup_steps + 1) * at.base;
  return as_double(*config.total_steps - at.step) / as_double(*config.total_steps - config.warmup_steps) * at.base;
}

void MultiStepTotal::to_iterations(Config& config, std::int64_t epoch_length) {
  total_to_iterations(config, epoch_length);
  for (std::int64_t& milestone : config.milestones) milestone = in_iterations("milestones", milestone, epoch_length);
}

MultiStepTotal::MultiStepTotal(Config options, const Window& window) : config(std::move(options)) {
  fill_total(config, window);
  require_milestones_inside(kName, config);
}

double MultiStepTotal::next(const SchedulePoint& at) const {
  return decay_at_milestones(at, config.milestones, config.gamma);
}

void MultiStepWarmup::to_iterations(Config& config, std::int64_t epoch_length) {
  MultiStepTotal::to_iterations(config, epoch_length);
  config.warmup_steps = in_iterations("warmup_steps", config.warmup_steps, epoch_length);
}

MultiStepWarmup::MultiStepWarmup(Config options, const Window& window) : config(std::move(options)) {
  fill_total(config, window);
  require_milestones_inside(kName, config);
  require_steps_after(kName, config, config.warmup_steps);
  stages.warmup = config.warmup_steps;
}

double MultiStepWarmup::next(const SchedulePoint& at) const {
  return at.step < stages.main_begin() ? stages.early_value(at)
                                       : decay_at_milestones(at, config.milestones, config.gamma);
}

void Polynomial::to_iterations(Config& config, std::int64_t epoch_length) { total_to_iterations(config, epoch_length); }

Polynomial::Polynomial(Config options, const Window& window) : config(std::move(options)) {
  fill_total(config, window);
}

double Polynomial::next(const SchedulePoint& at) const {
  return polynomial(config, at.base, at.step, *config.total_steps);
}

void PolynomialWarmup::to_iterations(Config& config, std::int64_t epoch_length) {
  total_to_iterations(config, epoch_length);
  config.warmup_steps = in_iterations("warmup_steps", config.warmup_steps, epoch_length);
}

PolynomialWarmup::PolynomialWarmup(Config options, const Window& window) : config(std::move(options)) {
  fill_total(config, window);
  require_steps_after(kName, config, config.warmup_steps);
  stages.warmup = config.warmup_steps;
}

double PolynomialWarmup::next(const SchedulePoint& at) const {
  if (at.step < stages.main_begin()) return stages.early_value(at);
  return polynomial(config, at.base, at.step - config.warmup_steps, *config.total_steps - config.warmup_steps);
}

void OneCycleTotal::to_iterations(Config& config, std::int64_t epoch_length) {
  total_to_iterations(config, epoch_length);
}

OneCycleTotal::OneCycleTotal(Config options, const Window& window)
    : config(std::move(options)), cycle(as_one_cycle(config), window) {
  fill_total(config, window);
}

void OneCycleTotal::prepare(std::vector<autograd::ParamGroup>& groups, std::int64_t last_step) const {
  OneCycle peak = cycle;
  std::vector<double> eta_max;
  for (autograd::ParamGroup& group : groups) {
    eta_max.push_back(named_value(group, "lr"));
    if (config.cycle_momentum && momentum_of(group) == nullptr) {
      throw ConfigError(cat(kName, ": the optimizer has neither momentum nor beta1; set cycle_momentum to false"),
                        "cycle_momentum");
    }
  }
  peak.config.eta_max = std::move(eta_max);
  peak.prepare(groups, last_step);
}

double OneCycleTotal::next(const SchedulePoint& at) const { return cycle.next(at); }

void OneCycleTotal::move_along(autograd::ParamGroup& group, std::int64_t step) const {
  double* momentum = config.cycle_momentum ? momentum_of(group) : nullptr;
  if (momentum == nullptr) return;
  const CyclePosition position = cycle_position(cycle.phases, step);
  const bool rising = position.phase == &cycle.phases.front();
  *momentum = anneal(config.anneal_strategy, rising ? config.max_momentum : config.base_momentum,
                     rising ? config.base_momentum : config.max_momentum, position.share);
}

}  // namespace castor::strategy
