// The options of every parameter scheduler, one struct a shape, and the one list of fields per struct (`own_fields`)
// that parsing, checks, help, the effective config and the saved state all read.
//
// Names, defaults and meanings are mmengine's; a std::optional without a value is its None. A required option's
// default is one that the constraints refuse, so that code which forgets it is told as a config is. Delicate: `begin`
// and `end` are doubles because an epoch-based window may be given in fractions of an epoch when it is converted to
// iterations; otherwise they must be whole, and the scheduler's constructor says so.
#pragma once

#include <concepts>
#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "strategy/config/constraint.h"

namespace castor::strategy {

/// The end of a window that never closes (mmengine's INF); never scaled by an epoch's length.
inline constexpr double kUnboundedEnd = 1e9;

/// One number for all groups of parameters, or one a group.
using PerGroup = std::variant<double, std::vector<double>>;

/// Options that every scheduler has: when it acts, and in which unit.
struct WindowConfig {
  double begin = 0;                    ///< first step of the window
  std::optional<double> end;           ///< first step after it; the run's length, else unbounded, when not given
  bool by_epoch = true;                ///< steps are epochs; iterations otherwise
  bool convert_to_iter_based = false;  ///< given in epochs, carried out in iterations
  std::int64_t last_step = -1;         ///< the shape's steps already done, to resume without a saved state
  bool verbose = false;                ///< logs each value set
};

/// ConstantLR and its twins.
struct ConstantConfig : WindowConfig {
  double factor = 1.0 / 3;  ///< (0, 1]
};
/// LinearLR and its twins.
struct LinearConfig : WindowConfig {
  double start_factor = 1.0 / 3;  ///< (0, 1]
  double end_factor = 1.0;        ///< [0, 1]
};
/// CosineAnnealingLR and its twins.
struct CosineAnnealingConfig : WindowConfig {
  std::optional<std::int64_t> T_max;    ///< > 0; the window's length when not given
  std::optional<double> eta_min;        ///< 0 when neither it nor eta_min_ratio is given
  std::optional<double> eta_min_ratio;  ///< not beside eta_min
};
/// CosineRestartLR and its twins.
struct CosineRestartConfig : WindowConfig {
  std::vector<std::int64_t> periods;         ///< required; each > 0
  std::vector<double> restart_weights{1.0};  ///< as many as periods
  std::optional<double> eta_min;             ///< this or eta_min_ratio is required
  std::optional<double> eta_min_ratio;       ///< this or eta_min is required
};
/// ExponentialLR and its twins.
struct ExponentialConfig : WindowConfig {
  double gamma = 0;  ///< required; > 0
};
/// StepLR and its twins.
struct StepConfig : WindowConfig {
  std::int64_t step_size = 0;  ///< required; > 0
  double gamma = 0.1;          ///< > 0
};
/// MultiStepLR and its twins.
struct MultiStepConfig : WindowConfig {
  std::vector<std::int64_t> milestones;  ///< required; each >= 0, any order; one given twice counts twice
  double gamma = 0.1;                    ///< > 0
};
/// PolyLR and its twins.
struct PolyConfig : WindowConfig {
  double eta_min = 0;
  double power = 1;  ///< >= 0
};
/// OneCycleLR and its generic twin.
struct OneCycleConfig : WindowConfig {
  PerGroup eta_max = 0.0;                   ///< > 0, so required in effect
  std::optional<std::int64_t> total_steps;  ///< > 0; the window's length when not given
  double pct_start = 0.3;                   ///< [0, 1]
  std::string anneal_strategy = "cos";      ///< cos or linear
  double div_factor = 25;                   ///< > 0
  double final_div_factor = 1e4;            ///< > 0
  bool three_phase = false;
};
/// ReduceOnPlateauLR and its twins.
struct ReduceOnPlateauConfig : WindowConfig {
  std::string monitor = "loss";
  std::string rule = "less";           ///< less or greater
  double factor = 0.1;                 ///< [0, 1)
  std::int64_t patience = 10;          ///< >= 0
  double threshold = 1e-4;             ///< >= 0
  std::string threshold_rule = "rel";  ///< rel or abs
  std::int64_t cooldown = 0;           ///< >= 0
  PerGroup min_value = 0.0;
  double eps = 1e-8;  ///< >= 0
};

/// The options of a generic twin: those of its shape, and which hyper-parameter it moves.
template <class ShapeConfig>
struct NamedParamConfig : ShapeConfig {
  std::string param_name;  ///< required; a name in the optimizer's groups, such as "weight_decay"
};

/// Calls visitor.field(name, member, doc, constraints...) for every option of the shape itself, in the order that help
/// shows them, and visitor.check for what must hold between them (see strategy/config/field.h).
template <class Visitor>
void own_fields(Visitor& v, ConstantConfig& c) {
  v.field("factor", c.factor, "multiplies the value at the window's start; divided out again at its last step",
          more_than(0), at_most(1));
}
template <class Visitor>
void own_fields(Visitor& v, LinearConfig& c) {
  v.field("start_factor", c.start_factor, "multiplies the value at the window's start", more_than(0), at_most(1));
  v.field("end_factor", c.end_factor, "what the factor has become at the window's last step", at_least(0), at_most(1));
}
template <class Visitor>
void own_fields(Visitor& v, CosineAnnealingConfig& c) {
  v.field("T_max", c.T_max, "steps from the highest to the lowest value; the window's length if not given",
          at_least(1));
  v.field("eta_min", c.eta_min, "the lowest value; 0 if neither this nor eta_min_ratio is given");
  v.field("eta_min_ratio", c.eta_min_ratio, "the lowest value as a share of the initial one; not beside eta_min");
  v.check(
      "eta_min_ratio", [&] { return !c.eta_min || !c.eta_min_ratio; }, "cannot be given beside eta_min");
}
template <class Visitor>
void own_fields(Visitor& v, CosineRestartConfig& c) {
  v.field("periods", c.periods, "steps of each cosine", required, non_empty(), at_least(1));
  v.field("restart_weights", c.restart_weights, "each cosine starts from the initial value times this", non_empty());
  v.field("eta_min", c.eta_min, "the lowest value; this or eta_min_ratio is required");
  v.field("eta_min_ratio", c.eta_min_ratio, "the lowest value as a share of the initial one; not beside eta_min");
  v.check(
      "restart_weights", [&] { return c.periods.size() == c.restart_weights.size(); },
      "must have one value for each of the periods");
  v.check(
      "eta_min", [&] { return c.eta_min.has_value() != c.eta_min_ratio.has_value(); },
      "must be given, or else eta_min_ratio, and not both");
}
template <class Visitor>
void own_fields(Visitor& v, ExponentialConfig& c) {
  v.field("gamma", c.gamma, "multiplies the value at every step", required, more_than(0));
}
template <class Visitor>
void own_fields(Visitor& v, StepConfig& c) {
  v.field("step_size", c.step_size, "steps between two decays", required, at_least(1));
  v.field("gamma", c.gamma, "multiplies the value at every decay", more_than(0));
}
template <class Visitor>
void own_fields(Visitor& v, MultiStepConfig& c) {
  v.field("milestones", c.milestones, "the window's steps at which the value decays", required, non_empty(),
          at_least(0));
  v.field("gamma", c.gamma, "multiplies the value at every milestone", more_than(0));
}
template <class Visitor>
void own_fields(Visitor& v, PolyConfig& c) {
  v.field("eta_min", c.eta_min, "the value at the window's last step");
  v.field("power", c.power, "exponent of the decay; 1 is a straight line", at_least(0));
}
template <class Visitor>
void own_fields(Visitor& v, OneCycleConfig& c) {
  v.field("eta_max", c.eta_max, "the highest value, for all groups or one a group", required, non_empty(),
          more_than(0));
  v.field("total_steps", c.total_steps, "steps of the cycle; the window's length if not given", at_least(1));
  v.field("pct_start", c.pct_start, "share of the cycle spent rising", at_least(0), at_most(1));
  v.field("anneal_strategy", c.anneal_strategy, "the form of the rise and the fall", one_of({"cos", "linear"}));
  v.field("div_factor", c.div_factor, "the first value is eta_max divided by this", more_than(0));
  v.field("final_div_factor", c.final_div_factor, "the last value is the first divided by this", more_than(0));
  v.field("three_phase", c.three_phase, "fall back to the first value before falling to the last");
}
template <class Visitor>
void own_fields(Visitor& v, ReduceOnPlateauConfig& c) {
  v.field("monitor", c.monitor, "the validation metric to watch", non_empty());
  v.field("rule", c.rule, "which metric is better", one_of({"less", "greater"}));
  v.field("factor", c.factor, "multiplies the value when the metric has stopped improving", at_least(0), less_than(1));
  v.field("patience", c.patience, "validations without improvement that are let pass", at_least(0));
  v.field("threshold", c.threshold, "how much better counts as an improvement", at_least(0));
  v.field("threshold_rule", c.threshold_rule, "threshold as a share of the best metric, or as it is",
          one_of({"rel", "abs"}));
  v.field("cooldown", c.cooldown, "validations after a reduction that do not count against patience", at_least(0));
  v.field("min_value", c.min_value, "the lowest value, for all groups or one a group", non_empty());
  v.field("eps", c.eps, "a reduction not larger than this is left out", at_least(0));
}
template <class Visitor, class ShapeConfig>
void own_fields(Visitor& v, NamedParamConfig<ShapeConfig>& c) {
  v.field("param_name", c.param_name, "the hyper-parameter to move, as weight_decay", required, non_empty());
  own_fields(v, static_cast<ShapeConfig&>(c));
}

/// What must hold between the common options of any scheduler; after their fields, since checks see values read so far.
template <class Visitor>
void check_window(Visitor& v, WindowConfig& c) {
  v.check(
      "end", [&] { return c.end.value_or(kUnboundedEnd) > c.begin; }, "must be above begin");
  v.check(
      "convert_to_iter_based", [&] { return !c.convert_to_iter_based || c.by_epoch; },
      "is for schedulers given in epochs, but by_epoch is false");
}
/// The same for the plateau rule, which has no iterations.
template <class Visitor>
void check_window(Visitor& v, ReduceOnPlateauConfig& c) {
  v.check(
      "by_epoch", [&] { return c.by_epoch; }, "must be true: this scheduler is stepped by validations");
  v.check(
      "convert_to_iter_based", [&] { return !c.convert_to_iter_based; },
      "must be false: this scheduler is stepped by validations");
  check_window(v, static_cast<WindowConfig&>(c));
}

/// Describes every option of a scheduler: the shape's own, then the common ones.
template <class Visitor, std::derived_from<WindowConfig> Config>
void describe(Visitor& v, Config& c) {
  own_fields(v, c);
  v.field("begin", c.begin, "first step at which the scheduler acts", at_least(0), at_most(kUnboundedEnd));
  v.field("end", c.end, "first step at which it acts no more; the run's length if not given", at_most(kUnboundedEnd));
  v.field("by_epoch", c.by_epoch, "steps are epochs (true) or iterations (false)");
  v.field("convert_to_iter_based", c.convert_to_iter_based, "options are in epochs, steps are taken by iteration");
  v.field("last_step", c.last_step, "steps of the shape already done, when resuming without a saved state; else -1",
          at_least(-1), at_most(kUnboundedEnd));
  v.field("verbose", c.verbose, "log every value that is set");
  check_window(v, c);
}

}  // namespace castor::strategy
