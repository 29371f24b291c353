// What every parameter scheduler is: a window of steps, a count of the calls, and a value per group of parameters that
// is moved at every step inside the window.
//
// Delicate: schedulers are recursive. Each step computes the next value from the *current* one (as mmengine does), so
// several schedulers over one parameter chain, and an outside change of the value is carried on instead of undone.
// Construction takes step 0, so a scheduler changes its groups when it is made; chained schedulers are made in order.
// Two counts exist: `global_step` counts calls from 0 and opens and closes the window, `last_step` counts the shape's
// own steps inside it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "autograd/optim/param_group.h"
#include "core/base/error.h"
#include "core/base/json.h"
#include "strategy/config/codec.h"
#include "strategy/config/diagnostics.h"
#include "strategy/scheduler/schedule_config.h"

namespace castor::strategy {

class StateWriter;
class StateReader;

/// Results of one validation by metric name.
using Metrics = std::map<std::string, double, std::less<>>;

/// What a scheduler is made from besides its options: the groups it moves and facts about the run.
struct SchedulerContext {
  /// The optimizer's groups; must outlive the scheduler and keep their number.
  std::vector<autograd::ParamGroup>& groups;
  std::optional<std::int64_t> max_epochs = std::nullopt;    ///< default `end` of an epoch-based scheduler
  std::optional<std::int64_t> max_iters = std::nullopt;     ///< default `end` of an iteration-based one
  std::optional<std::int64_t> epoch_length = std::nullopt;  ///< iterations an epoch, for convert_to_iter_based
  /// Optimizer steps taken so far; lets the scheduler warn when it is stepped before the optimizer. May be empty.
  std::function<std::int64_t()> optimizer_steps = nullptr;
};

/// The largest count of steps in force, so that sums of counts cannot overflow.
inline constexpr std::int64_t kMaxSteps = 1'000'000'000'000'000'000;

/// A window after defaults and the conversion to iterations: whole steps.
struct Window {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t last_step = -1;
  bool by_epoch = true;
  bool verbose = false;

  /// Steps inside the window.
  std::int64_t length() const { return end - begin; }
  /// False if the window never closes, so that its length says nothing.
  bool bounded() const { return static_cast<double>(end) != kUnboundedEnd; }
};

/// Holds options that code filled in to what `describe` demands of a config.
/// Throws one ConfigError with every mistake. `type` opens its text.
template <class Config>
void validate_options(const std::string& type, const Config& config) {
  const ValueCodec& codec = codec_of<Config>();
  Diagnostics diagnostics;
  ParseContext context{diagnostics};
  Config parsed;
  codec.parse(codec.dump(&config, {}, nullptr), "", {}, context, &parsed);
  diagnostics.throw_if_any(type);
}

/// The value of a group: the only one, or that of its index.
double value_for_group(const PerGroup& values, std::size_t group);
/// Throws ConfigError (path `option`) if `values` is a list of another length than `groups`.
void require_one_per_group(std::string_view type, std::string_view option, const PerGroup& values, std::size_t groups);

/// A count of epochs in iterations. Throws ConfigError (path `option`) if it is more than kMaxSteps.
std::int64_t in_iterations(std::string_view option, std::int64_t epochs, std::int64_t epoch_length);

/// Applies the default end and, if asked for, the conversion to iterations.
///   scale   multiplies the shape's own step counts by the epoch's length; empty if the shape cannot be converted
/// Throws ConfigError: fractions that stay fractions, end <= begin, a conversion without epoch_length or of a
/// scheduler that already counts iterations.
Window resolve_window(std::string_view type, const WindowConfig& config, const SchedulerContext& context,
                      const std::function<void(std::int64_t epoch_length)>& scale);

/// The hyper-parameter that momentum twins move: "momentum" if the groups have it, else "beta1".
/// Throws ConfigError if some group has neither.
std::string momentum_param(std::string_view type, const std::vector<autograd::ParamGroup>& groups);

/// Base of all schedulers. Not thread-safe; one per optimizer and schedule.
class ParamScheduler {
 public:
  virtual ~ParamScheduler() = default;
  ParamScheduler(const ParamScheduler&) = delete;
  ParamScheduler& operator=(const ParamScheduler&) = delete;

  /// Takes one step: call after each optimizer step, or after each epoch if by_epoch(). A scheduler that
  /// needs_metrics() only counts here. Throws ConfigError, and changes nothing, if the schedule has no finite value.
  virtual void step();
  /// Takes one step on the results of a validation. Throws InternalError unless needs_metrics().
  virtual void step(const Metrics& metrics);
  /// True if the scheduler moves values only by step(metrics), after a validation (it is also stepped by epoch).
  virtual bool needs_metrics() const { return false; }

  /// The config's name of the scheduler, as "CosineAnnealingLR".
  const std::string& type() const { return type_; }
  /// The hyper-parameter it moves.
  const std::string& param_name() const { return param_name_; }
  /// True if step() is to be called once an epoch, false if once an iteration.
  bool by_epoch() const { return window_.by_epoch; }
  /// The window in force, in the unit of by_epoch().
  const Window& window() const { return window_; }
  /// The shape's last step inside the window; -1 before the first.
  std::int64_t last_step() const { return window_.last_step; }
  /// Calls of step() since construction, which itself is call 0.
  std::int64_t global_step() const { return global_step_; }
  /// The parameter's value per group after the last step.
  const std::vector<double>& last_value() const { return last_value_; }

  /// Everything but the groups: options, counts, base values and last values. The keys are mmengine's attribute names
  /// ("last_step", "_global_step", "base_values", ...) plus "type".
  Json state_dict() const;
  /// Takes over a state_dict(), options included (the saved ones win, as in mmengine); does not touch the groups,
  /// whose values come with the optimizer's own state. On any error nothing has changed.
  /// Throws FormatError if the state is another type's, lacks or has extra keys, holds wrong types or does not fit the
  /// number of groups; ConfigError if its options are none that a config may hold.
  void load_state_dict(const Json& state);

 protected:
  /// Throws ConfigError (path "param_name") if a group lacks the parameter.
  ParamScheduler(const SchedulerContext& context, std::string type, std::string param_name, const Window& window);

  /// Records the values the schedule starts from; with last_step >= 0 they must be in the groups already.
  /// Throws ConfigError (path "last_step") if they are not.
  void record_initial_values();
  /// The parameter's value for one group at the shape's step `shape_step`, from its current value.
  virtual double next_value(std::size_t group, std::int64_t shape_step) const = 0;
  /// Called after the values of `shape_step` are in the groups; for shapes that move a second parameter along.
  virtual void values_set(std::int64_t shape_step);
  /// Writes the shape's options and state.
  virtual void write_own(StateWriter& out) const = 0;
  /// Reads and checks what write_own wrote; returns what puts it in force. Must change nothing itself.
  virtual std::function<void()> read_own(StateReader& in, const Window& window) = 0;

  /// The parameter's value in a group now.
  double& value(std::size_t group);
  double value(std::size_t group) const;
  /// Logs a value that was set at the given call of step(), if `verbose` asks for it.
  void print_value(std::size_t group, double value, std::int64_t at_step) const;
  /// Fills last_value().
  void remember_last_values();

  std::vector<autograd::ParamGroup>& groups_;
  std::string type_;
  std::string param_name_;
  Window window_;
  std::int64_t global_step_ = -1;
  std::vector<double> base_values_;  // per group: what "initial_<param>" was at construction
  std::vector<double> last_value_;

 private:
  void warn_if_before_optimizer() const;

  std::function<std::int64_t()> optimizer_steps_;
  std::int64_t optimizer_steps_at_start_ = 0;
};

}  // namespace castor::strategy
