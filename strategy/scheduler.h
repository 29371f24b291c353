// Every parameter scheduler by its public name, and the one list that registries iterate.
//
// A scheduler is a shape (scheduler/shapes.h, scheduler/total_steps_shapes.h) or the plateau rule inside a window
// (scheduler/param_scheduler.h), over the learning rate, the momentum or any hyper-parameter. To add one: write the
// shape and name it in `for_each_scheduler`; nothing else lists them.
//
// How a run steps them: after each optimizer step that was not skipped, step() on those that count iterations; after
// each epoch, step() on those that count epochs; after each validation, step(metrics) on those that need_metrics().
#pragma once

#include <string_view>
#include <type_traits>

#include "strategy/scheduler/param_scheduler.h"
#include "strategy/scheduler/plateau.h"
#include "strategy/scheduler/shaped_scheduler.h"
#include "strategy/scheduler/shapes.h"
#include "strategy/scheduler/total_steps_shapes.h"

namespace castor::strategy {

/// mmengine's learning rate schedulers.
using ConstantLR = LearningRateTwin<ShapedScheduler<Constant>>;
using LinearLR = LearningRateTwin<ShapedScheduler<Linear>>;
using CosineAnnealingLR = LearningRateTwin<ShapedScheduler<CosineAnnealing>>;
using CosineRestartLR = LearningRateTwin<ShapedScheduler<CosineRestart>>;
using ExponentialLR = LearningRateTwin<ShapedScheduler<Exponential>>;
using StepLR = LearningRateTwin<ShapedScheduler<Step>>;
using MultiStepLR = LearningRateTwin<ShapedScheduler<MultiStep>>;
using PolyLR = LearningRateTwin<ShapedScheduler<Poly>>;
using OneCycleLR = LearningRateTwin<ShapedScheduler<OneCycle>>;
using ReduceOnPlateauLR = LearningRateTwin<PlateauScheduler>;

/// The same over momentum (beta1 where there is no momentum).
using ConstantMomentum = MomentumTwin<ShapedScheduler<Constant>>;
using LinearMomentum = MomentumTwin<ShapedScheduler<Linear>>;
using CosineAnnealingMomentum = MomentumTwin<ShapedScheduler<CosineAnnealing>>;
using CosineRestartMomentum = MomentumTwin<ShapedScheduler<CosineRestart>>;
using ExponentialMomentum = MomentumTwin<ShapedScheduler<Exponential>>;
using StepMomentum = MomentumTwin<ShapedScheduler<Step>>;
using MultiStepMomentum = MomentumTwin<ShapedScheduler<MultiStep>>;
using PolyMomentum = MomentumTwin<ShapedScheduler<Poly>>;
using ReduceOnPlateauMomentum = MomentumTwin<PlateauScheduler>;

/// The same over the hyper-parameter that the option param_name names.
using ConstantParamScheduler = GenericTwin<ShapedScheduler<Constant>>;
using LinearParamScheduler = GenericTwin<ShapedScheduler<Linear>>;
using CosineAnnealingParamScheduler = GenericTwin<ShapedScheduler<CosineAnnealing>>;
using CosineRestartParamScheduler = GenericTwin<ShapedScheduler<CosineRestart>>;
using ExponentialParamScheduler = GenericTwin<ShapedScheduler<Exponential>>;
using StepParamScheduler = GenericTwin<ShapedScheduler<Step>>;
using MultiStepParamScheduler = GenericTwin<ShapedScheduler<MultiStep>>;
using PolyParamScheduler = GenericTwin<ShapedScheduler<Poly>>;
using OneCycleParamScheduler = GenericTwin<ShapedScheduler<OneCycle>>;
using ReduceOnPlateauParamScheduler = GenericTwin<PlateauScheduler>;

/// A learning rate scheduler whose shape carries its whole type name: ColossalAI's.
template <class Shape>
class TotalStepsScheduler final : public ShapedScheduler<Shape> {
 public:
  using Config = typename Shape::Config;
  /// The name in a config.
  static std::string type_name() { return std::string(Shape::kName); }
  /// Throws ConfigError for wrong options or groups without "lr".
  TotalStepsScheduler(const SchedulerContext& context, const Config& config)
      : ShapedScheduler<Shape>(context, type_name(), "lr", config) {}
};

/// Calls visit(std::type_identity<S>{}, S::type_name(), summary) for every scheduler type S. Each S derives from
/// ParamScheduler and has `S::Config` (with `describe`) and `S(const SchedulerContext&, const S::Config&)`.
template <class Visit>
void for_each_scheduler(Visit&& visit) {
  const auto show = [&]<class... Schedulers>(std::type_identity<Schedulers>... schedulers) {
    (visit(schedulers, Schedulers::type_name(), Schedulers::kSummary), ...);
  };
  const auto show_twins = [&]<class... Bases>(std::type_identity<Bases>...) {
    (show(std::type_identity<LearningRateTwin<Bases>>{}, std::type_identity<MomentumTwin<Bases>>{},
          std::type_identity<GenericTwin<Bases>>{}),
     ...);
  };
  const auto show_shapes = [&]<class... Shapes>(std::type_identity<Shapes>...) {
    show_twins(std::type_identity<ShapedScheduler<Shapes>>{}...);
  };
  const auto show_totals = [&]<class... Shapes>(std::type_identity<Shapes>...) {
    show(std::type_identity<TotalStepsScheduler<Shapes>>{}...);
  };
  show_shapes(std::type_identity<Constant>{}, std::type_identity<Linear>{}, std::type_identity<CosineAnnealing>{},
              std::type_identity<CosineRestart>{}, std::type_identity<Exponential>{}, std::type_identity<Step>{},
              std::type_identity<MultiStep>{}, std::type_identity<Poly>{});
  show_twins(std::type_identity<PlateauScheduler>{});
  show(std::type_identity<OneCycleLR>{}, std::type_identity<OneCycleParamScheduler>{});
  show_totals(std::type_identity<CosineTotal>{}, std::type_identity<CosineWarmup>{},
              std::type_identity<FlatAnnealing>{}, std::type_identity<FlatAnnealingWarmup>{},
              std::type_identity<LinearWarmup>{}, std::type_identity<MultiStepTotal>{},
              std::type_identity<MultiStepWarmup>{}, std::type_identity<Polynomial>{},
              std::type_identity<PolynomialWarmup>{}, std::type_identity<OneCycleTotal>{});
}

/// Calls visit(type name, reason) for each of the peers' schedulers that a config cannot have here.
template <class Visit>
void for_each_refused_scheduler(Visit&& visit) {
  for (std::string_view name : {"LambdaLR", "MultiplicativeLR"}) {
    visit(name, std::string_view("takes a function, which a config cannot hold; write a shape and register it"));
  }
}

}  // namespace castor::strategy
