// Puts a shape into a scheduler, and a scheduler into its three public types: over the learning rate, over the
// momentum, and over any hyper-parameter by name.
//
// Delicate: a scheduler takes its first step in its constructor, which only the class that knows the shape can do; the
// public types add a name and the parameter's, nothing else.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "strategy/scheduler/param_scheduler.h"
#include "strategy/scheduler/shapes.h"
#include "strategy/scheduler/state_fields.h"

namespace castor::strategy {

namespace detail {
template <class Shape>
concept LearningRateOnly = Shape::kLearningRateOnly;
template <class Shape>
concept Prepares = requires(const Shape& shape, std::vector<autograd::ParamGroup>& groups) {
  shape.prepare(groups, 0);
};
template <class Shape>
concept MovesAlong = requires(const Shape& shape, autograd::ParamGroup& group) {
  shape.move_along(group, 0);
};
}  // namespace detail

/// A scheduler whose values follow a shape (see shapes.h).
template <class Shape>
class ShapedScheduler : public ParamScheduler {
 public:
  using Config = typename Shape::Config;
  static constexpr std::string_view kName = Shape::kName;
  static constexpr std::string_view kSummary = Shape::kSummary;

  /// Checks the options, records the starting values and takes step 0 on the groups. Throws ConfigError.
  ShapedScheduler(const SchedulerContext& context, const std::string& type, const std::string& param_name,
                  const Config& config)
      : ShapedScheduler(context, type, param_name, resolve(context, type, param_name, config)) {}

 protected:
  double next_value(std::size_t group, std::int64_t shape_step) const override {
    return shape_.next({value(group), base_values_[group], shape_step, groups_[group]});
  }

  void values_set(std::int64_t shape_step) override {
    if constexpr (detail::MovesAlong<Shape>) {
      for (autograd::ParamGroup& group : groups_) shape_.move_along(group, shape_step);
    }
  }

  void write_own(StateWriter& out) const override {
    Config config = shape_.config;
    own_fields(out, config);
  }

  std::function<void()> read_own(StateReader& in, const Window& window) override {
    Config config = shape_.config;
    own_fields(in, config);
    validate_options("state of " + type_, config);
    return [this, shape = Shape(std::move(config), window)] { shape_ = shape; };
  }

 private:
  struct Resolved {
    Config config;
    Window window;
  };

  static Resolved resolve(const SchedulerContext& context, const std::string& type, const std::string& param_name,
                          Config config) {
    validate_options(type, config);
    if constexpr (detail::LearningRateOnly<Shape>) {
      if (param_name != "lr")
        throw ConfigError(cat(type, ": param_name can only be lr, got ", param_name), "param_name");
    }
    const Window window = resolve_window(
        type, config, context, [&](std::int64_t epoch_length) { Shape::to_iterations(config, epoch_length); });
    return {std::move(config), window};
  }

  ShapedScheduler(const SchedulerContext& context, const std::string& type, const std::string& param_name,
                  Resolved resolved)
      : ParamScheduler(context, type, param_name, resolved.window), shape_(resolved.config, resolved.window) {
    if constexpr (detail::Prepares<Shape>) shape_.prepare(groups_, resolved.window.last_step);
    record_initial_values();
    ParamScheduler::step();
  }

  Shape shape_;
};

/// The twin over the learning rate: type name <stem>LR.
template <class Base>
class LearningRateTwin final : public Base {
 public:
  using Config = typename Base::Config;
  /// The name in a config.
  static std::string type_name() { return cat(Base::kName, "LR"); }
  /// Throws ConfigError for wrong options or groups without "lr".
  LearningRateTwin(const SchedulerContext& context, const Config& config) : Base(context, type_name(), "lr", config) {}
};

/// The twin over "momentum", or "beta1" where groups have no momentum: type name <stem>Momentum.
template <class Base>
class MomentumTwin final : public Base {
 public:
  using Config = typename Base::Config;
  /// The name in a config.
  static std::string type_name() { return cat(Base::kName, "Momentum"); }
  /// Throws ConfigError for wrong options or groups without momentum and beta1.
  MomentumTwin(const SchedulerContext& context, const Config& config)
      : Base(context, type_name(), momentum_param(type_name(), context.groups), config) {}
};

/// The twin over any hyper-parameter: type name <stem>ParamScheduler, option param_name.
template <class Base>
class GenericTwin final : public Base {
 public:
  using Config = NamedParamConfig<typename Base::Config>;
  /// The name in a config.
  static std::string type_name() { return cat(Base::kName, "ParamScheduler"); }
  /// Throws ConfigError for wrong options or groups without the parameter.
  GenericTwin(const SchedulerContext& context, const Config& config)
      : Base(context, type_name(), checked_name(config), config) {}

 private:
  static const std::string& checked_name(const Config& config) {
    validate_options(type_name(), config);
    return config.param_name;
  }
};

}  // namespace castor::strategy
