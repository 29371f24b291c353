// The shapes of mmengine's schedules, free of windows, counts and files: each says how one value follows from the last.
//
// A shape is a class with
//   Config, kName, kSummary              its options, the stem of its type names, one line of help
//   to_iterations(config, epoch_length)  multiplies its own step counts
//   Shape(config, window)                fills in what the window decides; `config` is then what a state saves
//   next(point)                          the value of a step from the value before it
// and, where it needs more than the moved value, prepare(groups, last_step) and move_along(group, step).
// Delicate: the arithmetic is mmengine's operation by operation, in the same order, because the recursions amplify the
// last bit over long runs. T_max, eta_min and so on keep their published spelling.
// Source of the cosine shapes: Loshchilov & Hutter 2017, arXiv:1608.03983; of one-cycle: Smith & Topin 2018,
// arXiv:1708.07120.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "autograd/optim/param_group.h"
#include "strategy/scheduler/param_scheduler.h"
#include "strategy/scheduler/schedule_config.h"

namespace castor::strategy {

/// What a shape may look at to say a group's next value.
struct SchedulePoint {
  double current;                     ///< the value now
  double base;                        ///< the value the schedule started from, "initial_<param>" at construction
  std::int64_t step;                  ///< the shape's step to take, 0 at the window's start
  const autograd::ParamGroup& group;  ///< all values of the group
};

/// Multiplies by `factor` at the first step and undoes it at the window's last.
struct Constant {
  using Config = ConstantConfig;
  static constexpr std::string_view kName = "Constant";
  static constexpr std::string_view kSummary = "times a factor for the whole window";
  static void to_iterations(Config& config, std::int64_t epoch_length);
  Constant(Config options, const Window& window);
  double next(const SchedulePoint& at) const;

  Config config;
  std::int64_t total_iters;  ///< the window's last step
};

/// Moves the factor on the starting value from start_factor to end_factor in a straight line.
struct Linear {
  using Config = LinearConfig;
  static constexpr std::string_view kName = "Linear";
  static constexpr std::string_view kSummary = "a factor that moves in a straight line; warm-up";
  static void to_iterations(Config& config, std::int64_t epoch_length);
  Linear(Config options, const Window& window);
  double next(const SchedulePoint& at) const;

  Config config;
  std::int64_t total_iters;  ///< the window's last step
};

/// Half a cosine from the starting value to eta_min in T_max steps, and back up after that.
struct CosineAnnealing {
  using Config = CosineAnnealingConfig;
  static constexpr std::string_view kName = "CosineAnnealing";
  static constexpr std::string_view kSummary = "half a cosine down to eta_min";
  static void to_iterations(Config& config, std::int64_t epoch_length);
  CosineAnnealing(Config options, const Window& window);
  double next(const SchedulePoint& at) const;

  Config config;
};

/// One cosine after another, each from the initial value times its restart weight.
struct CosineRestart {
  using Config = CosineRestartConfig;
  static constexpr std::string_view kName = "CosineRestart";
  static constexpr std::string_view kSummary = "half cosines, each restarting from a weight of the initial value";
  static void to_iterations(Config& config, std::int64_t epoch_length);
  CosineRestart(Config options, const Window& window);
  double next(const SchedulePoint& at) const;

  Config config;
};

/// Multiplies by gamma at every step.
struct Exponential {
  using Config = ExponentialConfig;
  static constexpr std::string_view kName = "Exponential";
  static constexpr std::string_view kSummary = "times gamma at every step";
  static void to_iterations(Config& config, std::int64_t epoch_length);
  Exponential(Config options, const Window& window);
  double next(const SchedulePoint& at) const;

  Config config;
};

/// Multiplies by gamma every step_size steps.
struct Step {
  using Config = StepConfig;
  static constexpr std::string_view kName = "Step";
  static constexpr std::string_view kSummary = "times gamma every step_size steps";
  static void to_iterations(Config& config, std::int64_t epoch_length);
  Step(Config options, const Window& window);
  double next(const SchedulePoint& at) const;

  Config config;
};

/// Multiplies by gamma at each milestone.
struct MultiStep {
  using Config = MultiStepConfig;
  static constexpr std::string_view kName = "MultiStep";
  static constexpr std::string_view kSummary = "times gamma at given steps";
  static void to_iterations(Config& config, std::int64_t epoch_length);
  MultiStep(Config options, const Window& window);
  double next(const SchedulePoint& at) const;

  Config config;
};

/// Falls to eta_min as a power of the share of the window that is left.
struct Poly {
  using Config = PolyConfig;
  static constexpr std::string_view kName = "Poly";
  static constexpr std::string_view kSummary = "a power of the share of steps left, down to eta_min";
  static void to_iterations(Config& config, std::int64_t epoch_length);
  Poly(Config options, const Window& window);
  double next(const SchedulePoint& at) const;

  Config config;
  std::int64_t total_iters;  ///< the window's last step
};

/// The value of a step of a schedule that multiplies by gamma at milestones; a milestone given twice counts twice.
double decay_at_milestones(const SchedulePoint& at, const std::vector<std::int64_t>& milestones, double gamma);

/// A stretch of a one-cycle schedule: from one named value of the group to another.
struct CyclePhase {
  double end_step;        ///< where it ends; a fraction is possible
  std::string_view from;  ///< name in the group's values
  std::string_view to;    ///< name in the group's values
};

/// Where a step lies in a cycle of phases.
struct CyclePosition {
  const CyclePhase* phase;
  double share;  ///< of the phase that is done; above 1 only past the last step
};

/// Finds the phase of `step`. The last phase takes everything that no earlier one does.
CyclePosition cycle_position(const std::vector<CyclePhase>& phases, std::int64_t step);

/// Moves from `from` to `to` as `share` goes from 0 to 1: "cos" along half a cosine, "linear" in a straight line.
double anneal(std::string_view strategy, double from, double to, double share);

/// A group's value by name. Throws ConfigError if it has none.
double named_value(const autograd::ParamGroup& group, std::string_view name);

/// Up from eta_max / div_factor to eta_max, then down to far below the start. Moves "lr" only; does not chain: values
/// follow from initial_lr, max_lr and min_lr, which it writes into the groups.
struct OneCycle {
  using Config = OneCycleConfig;
  static constexpr std::string_view kName = "OneCycle";
  static constexpr std::string_view kSummary = "up to eta_max and down again, far below the start (learning rate only)";
  static constexpr bool kLearningRateOnly = true;
  static void to_iterations(Config& config, std::int64_t epoch_length);
  /// Throws ConfigError if the rising phase would be exactly one step long and so have no slope.
  OneCycle(Config options, const Window& window);
  /// Writes initial_lr, max_lr and min_lr unless last_step resumes a cycle.
  /// Throws ConfigError if eta_max has neither one value nor one a group.
  void prepare(std::vector<autograd::ParamGroup>& groups, std::int64_t last_step) const;
  /// Throws ConfigError past total_steps.
  double next(const SchedulePoint& at) const;

  Config config;
  std::vector<CyclePhase> phases;
};

}  // namespace castor::strategy
