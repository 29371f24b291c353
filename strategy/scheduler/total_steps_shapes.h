// ColossalAI's own learning rate shapes, which are told how many steps there are in all and warm up by themselves.
//
// They follow the same contract as shapes.h, move "lr" only, and by default count iterations. `total_steps` falls back
// to the window's length, which is the run's. Where ColossalAI's name is also mmengine's, ours begins with
// "colossalai.". Delicate: the warm-up counts from 1 (step 0 of w already has 1/w of the rate), except LinearWarmupLR,
// which divides by w + 1; and the shape after a warm-up starts its own count at 0.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "strategy/scheduler/shapes.h"

namespace castor::strategy {

/// Options of every shape in this file.
struct TotalStepsConfig : WindowConfig {
  TotalStepsConfig() { by_epoch = false; }
  std::optional<std::int64_t> total_steps;  ///< > 0; the window's length when not given
};
/// colossalai.CosineAnnealingLR.
struct CosineTotalConfig : TotalStepsConfig {
  double eta_min = 0;
};
/// CosineAnnealingWarmupLR.
struct CosineWarmupConfig : TotalStepsConfig {
  std::int64_t warmup_steps = 0;  ///< >= 0, below total_steps
  double eta_min = 0;
};
/// FlatAnnealingLR.
struct FlatAnnealingConfig : TotalStepsConfig {
  double pct_start = 0.72;  ///< [0, 1]
};
/// FlatAnnealingWarmupLR.
struct FlatAnnealingWarmupConfig : TotalStepsConfig {
  std::int64_t warmup_steps = 0;  ///< >= 0, below total_steps
  double pct_start = 0.72;        ///< [0, 1]
  double eta_min = 0;
};
/// LinearWarmupLR.
struct LinearWarmupConfig : TotalStepsConfig {
  std::int64_t warmup_steps = 0;  ///< >= 0, below total_steps
};
/// colossalai.MultiStepLR.
struct MultiStepTotalConfig : TotalStepsConfig {
  std::vector<std::int64_t> milestones;  ///< required; from 0 to total_steps
  double gamma = 0.1;                    ///< > 0
};
/// MultiStepWarmupLR.
struct MultiStepWarmupConfig : MultiStepTotalConfig {
  std::int64_t warmup_steps = 0;  ///< >= 0, below total_steps; milestones inside the warm-up have no effect
};
/// PolynomialLR.
struct PolynomialConfig : TotalStepsConfig {
  double end_lr = 0.0001;  ///< >= 0
  double power = 1.0;      ///< >= 0
};
/// PolynomialWarmupLR.
struct PolynomialWarmupConfig : PolynomialConfig {
  std::int64_t warmup_steps = 0;  ///< >= 0, below total_steps
};
/// colossalai.OneCycleLR.
struct OneCycleTotalConfig : TotalStepsConfig {
  double pct_start = 0.3;               ///< [0, 1]
  std::string anneal_strategy = "cos";  ///< cos or linear
  bool cycle_momentum = true;
  double base_momentum = 0.85;
  double max_momentum = 0.95;
  double div_factor = 25;         ///< > 0
  double final_div_factor = 1e4;  ///< > 0
};

/// Describes every option of the shape itself (see schedule_config.h).
template <class Visitor>
void own_fields(Visitor& v, TotalStepsConfig& c) {
  v.field("total_steps", c.total_steps, "steps of the whole schedule; the window's length if not given", at_least(1));
}
template <class Visitor>
void own_fields(Visitor& v, CosineTotalConfig& c) {
  own_fields(v, static_cast<TotalStepsConfig&>(c));
  v.field("eta_min", c.eta_min, "the lowest value");
}
template <class Visitor>
void own_fields(Visitor& v, CosineWarmupConfig& c) {
  own_fields(v, static_cast<TotalStepsConfig&>(c));
  v.field("warmup_steps", c.warmup_steps, "steps of linear warm-up before the cosine", at_least(0));
  v.field("eta_min", c.eta_min, "the lowest value");
}
template <class Visitor>
void own_fields(Visitor& v, FlatAnnealingConfig& c) {
  own_fields(v, static_cast<TotalStepsConfig&>(c));
  v.field("pct_start", c.pct_start, "share of the steps before the cosine starts", at_least(0), at_most(1));
}
template <class Visitor>
void own_fields(Visitor& v, FlatAnnealingWarmupConfig& c) {
  own_fields(v, static_cast<TotalStepsConfig&>(c));
  v.field("warmup_steps", c.warmup_steps, "steps of linear warm-up", at_least(0));
  v.field("pct_start", c.pct_start, "share of the steps after warm-up before the cosine starts", at_least(0),
          at_most(1));
  v.field("eta_min", c.eta_min, "the lowest value");
}
template <class Visitor>
void own_fields(Visitor& v, LinearWarmupConfig& c) {
  own_fields(v, static_cast<TotalStepsConfig&>(c));
  v.field("warmup_steps", c.warmup_steps, "steps of linear warm-up before the straight line down to 0", at_least(0));
}
template <class Visitor>
void own_fields(Visitor& v, MultiStepTotalConfig& c) {
  own_fields(v, static_cast<TotalStepsConfig&>(c));
  v.field("milestones", c.milestones, "the steps at which the value decays", required, non_empty(), at_least(0));
  v.field("gamma", c.gamma, "multiplies the value at every milestone", more_than(0));
}
template <class Visitor>
void own_fields(Visitor& v, MultiStepWarmupConfig& c) {
  own_fields(v, static_cast<MultiStepTotalConfig&>(c));
  v.field("warmup_steps", c.warmup_steps, "steps of linear warm-up; milestones inside it have no effect", at_least(0));
}
template <class Visitor>
void own_fields(Visitor& v, PolynomialConfig& c) {
  own_fields(v, static_cast<TotalStepsConfig&>(c));
  v.field("end_lr", c.end_lr, "the value at the end", at_least(0));
  v.field("power", c.power, "exponent of the decay; 1 is a straight line", at_least(0));
}
template <class Visitor>
void own_fields(Visitor& v, PolynomialWarmupConfig& c) {
  own_fields(v, static_cast<PolynomialConfig&>(c));
  v.field("warmup_steps", c.warmup_steps, "steps of linear warm-up", at_least(0));
}
template <class Visitor>
void own_fields(Visitor& v, OneCycleTotalConfig& c) {
  own_fields(v, static_cast<TotalStepsConfig&>(c));
  v.field("pct_start", c.pct_start, "share of the cycle spent rising", at_least(0), at_most(1));
  v.field("anneal_strategy", c.anneal_strategy, "the form of the rise and the fall", one_of({"cos", "linear"}));
  v.field("cycle_momentum", c.cycle_momentum, "move momentum (beta1) against the learning rate");
  v.field("base_momentum", c.base_momentum, "momentum where the learning rate is highest");
  v.field("max_momentum", c.max_momentum, "momentum at the cycle's start and end");
  v.field("div_factor", c.div_factor, "the first rate is the highest divided by this", more_than(0));
  v.field("final_div_factor", c.final_div_factor, "the last rate is the first divided by this", more_than(0));
}

/// Where the stages before a shape's main stage end.
struct Stages {
  std::int64_t warmup = 0;  ///< steps that rise in a straight line to the base value
  std::int64_t flat = 0;    ///< steps after them at the base value

  /// First step of the main stage.
  std::int64_t main_begin() const { return warmup + flat; }
  /// The value of an early step; only for at.step < main_begin().
  double early_value(const SchedulePoint& at) const;
};

/// Half a cosine over total_steps.
struct CosineTotal {
  using Config = CosineTotalConfig;
  static constexpr std::string_view kName = "colossalai.CosineAnnealingLR";
  static constexpr std::string_view kSummary = "half a cosine over total_steps";
  static void to_iterations(Config& config, std::int64_t epoch_length);
  CosineTotal(Config options, const Window& window);
  double next(const SchedulePoint& at) const;

  Config config;
};

/// Linear warm-up, then half a cosine over the steps that are left.
struct CosineWarmup {
  using Config = CosineWarmupConfig;
  static constexpr std::string_view kName = "CosineAnnealingWarmupLR";
  static constexpr std::string_view kSummary = "linear warm-up, then half a cosine";
  static void to_iterations(Config& config, std::int64_t epoch_length);
  /// Throws ConfigError if the warm-up leaves no steps.
  CosineWarmup(Config options, const Window& window);
  double next(const SchedulePoint& at) const;

  Config config;
  Stages stages;
};

/// The base value for a share of the steps, then half a cosine down to 0.
struct FlatAnnealing {
  using Config = FlatAnnealingConfig;
  static constexpr std::string_view kName = "FlatAnnealingLR";
  static constexpr std::string_view kSummary = "flat, then half a cosine";
  static void to_iterations(Config& config, std::int64_t epoch_length);
  FlatAnnealing(Config options, const Window& window);
  double next(const SchedulePoint& at) const;

  Config config;
  Stages stages;
};

/// Linear warm-up, flat, then half a cosine.
struct FlatAnnealingWarmup {
  using Config = FlatAnnealingWarmupConfig;
  static constexpr std::string_view kName = "FlatAnnealingWarmupLR";
  static constexpr std::string_view kSummary = "linear warm-up, flat, then half a cosine";
  static void to_iterations(Config& config, std::int64_t epoch_length);
  /// Throws ConfigError if the warm-up leaves no steps.
  FlatAnnealingWarmup(Config options, const Window& window);
  double next(const SchedulePoint& at) const;

  Config config;
  Stages stages;
};

/// Linear warm-up, then a straight line that reaches 0 at total_steps.
struct LinearWarmup {
  using Config = LinearWarmupConfig;
  static constexpr std::string_view kName = "LinearWarmupLR";
  static constexpr std::string_view kSummary = "linear warm-up, then a straight line down to 0";
  static void to_iterations(Config& config, std::int64_t epoch_length);
  /// Throws ConfigError if the warm-up leaves no steps or the window goes on past total_steps (the rate would turn
  /// negative).
  LinearWarmup(Config options, const Window& window);
  /// Throws ConfigError past total_steps.
  double next(const SchedulePoint& at) const;

  Config config;
};

/// Multiplies by gamma at each milestone.
struct MultiStepTotal {
  using Config = MultiStepTotalConfig;
  static constexpr std::string_view kName = "colossalai.MultiStepLR";
  static constexpr std::string_view kSummary = "times gamma at given steps";
  static void to_iterations(Config& config, std::int64_t epoch_length);
  /// Throws ConfigError if a milestone lies past total_steps.
  MultiStepTotal(Config options, const Window& window);
  double next(const SchedulePoint& at) const;

  Config config;
};

/// Linear warm-up, then times gamma at each milestone.
struct MultiStepWarmup {
  using Config = MultiStepWarmupConfig;
  static constexpr std::string_view kName = "MultiStepWarmupLR";
  static constexpr std::string_view kSummary = "linear warm-up, then times gamma at given steps";
  static void to_iterations(Config& config, std::int64_t epoch_length);
  /// Throws ConfigError if a milestone lies past total_steps or the warm-up leaves no steps.
  MultiStepWarmup(Config options, const Window& window);
  double next(const SchedulePoint& at) const;

  Config config;
  Stages stages;
};

/// Falls to end_lr as a power of the share of steps left, and stays there.
struct Polynomial {
  using Config = PolynomialConfig;
  static constexpr std::string_view kName = "PolynomialLR";
  static constexpr std::string_view kSummary = "a power of the share of steps left, down to end_lr";
  static void to_iterations(Config& config, std::int64_t epoch_length);
  Polynomial(Config options, const Window& window);
  double next(const SchedulePoint& at) const;

  Config config;
};

/// Linear warm-up, then Polynomial over the steps that are left.
struct PolynomialWarmup {
  using Config = PolynomialWarmupConfig;
  static constexpr std::string_view kName = "PolynomialWarmupLR";
  static constexpr std::string_view kSummary = "linear warm-up, then a power of the share of steps left";
  static void to_iterations(Config& config, std::int64_t epoch_length);
  /// Throws ConfigError if the warm-up leaves no steps.
  PolynomialWarmup(Config options, const Window& window);
  double next(const SchedulePoint& at) const;

  Config config;
  Stages stages;
};

/// One cycle whose highest rate is the optimizer's own, with momentum moving the other way.
struct OneCycleTotal {
  using Config = OneCycleTotalConfig;
  static constexpr std::string_view kName = "colossalai.OneCycleLR";
  static constexpr std::string_view kSummary = "up to the optimizer's rate and down again, momentum the other way";
  static void to_iterations(Config& config, std::int64_t epoch_length);
  /// Throws ConfigError as OneCycle does.
  OneCycleTotal(Config options, const Window& window);
  /// Writes initial_lr, max_lr and min_lr unless last_step resumes a cycle.
  /// Throws ConfigError if cycle_momentum is set and a group has neither momentum nor beta1.
  void prepare(std::vector<autograd::ParamGroup>& groups, std::int64_t last_step) const;
  double next(const SchedulePoint& at) const;
  /// Sets the group's momentum, or beta1, for the step.
  void move_along(autograd::ParamGroup& group, std::int64_t step) const;

  Config config;
  OneCycle cycle;
};

}  // namespace castor::strategy
