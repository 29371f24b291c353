// What the schedulers promise beyond their values, which the parity suite compares with the peers': windows and their
// defaults, the conversion to iterations, which hyper-parameter moves, warnings, logs, saved states, and that a shape
// from outside the library is as good as one of its own. Refusals are in scheduler_refusal_test.cpp.
#include "strategy/scheduler.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "core/base/json.h"
#include "tests/support/log_capture.h"
#include "tests/support/scheduler_groups.h"

namespace castor::strategy {

using namespace castor::test::schedulers;

TEST_CASE("construction takes step 0 and a window leaves values alone outside itself") {
  Groups groups = sgd_groups();
  ConstantConfig config;
  config.factor = 0.5;
  config.begin = 2;
  config.end = 5;
  ConstantLR scheduler({groups}, config);
  CHECK(scheduler.global_step() == 0);
  CHECK(scheduler.last_step() == -1);
  std::vector<double> seen{lr(groups)};
  for (int i = 0; i < 6; ++i) {
    scheduler.step();
    seen.push_back(lr(groups));
  }
  CHECK(seen == std::vector<double>{0.1, 0.1, 0.05, 0.05, 0.1, 0.1, 0.1});
  CHECK(scheduler.last_step() == 2);
  CHECK(scheduler.last_value() == std::vector<double>{0.1});
}

TEST_CASE("schedulers work on the current value, so an outside change is carried on") {
  Groups groups = sgd_groups();
  ExponentialConfig config;
  config.gamma = 0.5;
  ExponentialLR scheduler({groups}, config);
  scheduler.step();
  groups[0].values["lr"] = 8;
  scheduler.step();
  CHECK(lr(groups) == 4);
}

TEST_CASE("chained schedulers share one initial value") {
  Groups groups = sgd_groups();
  LinearConfig warmup;
  warmup.start_factor = 0.1;
  warmup.end = 4;
  LinearLR first({groups}, warmup);
  CHECK(lr(groups) == doctest::Approx(0.01));
  CosineAnnealingConfig rest;
  rest.begin = 4;
  rest.end = 8;
  rest.eta_min_ratio = 0.5;
  CosineAnnealingLR second({groups}, rest);
  CHECK(groups[0].values.at("initial_lr") == 0.1);
  CHECK(second.state_dict().at("base_values") == Json::array({0.1}));
  for (int i = 0; i < 8; ++i) {
    first.step();
    second.step();
    if (i == 3) CHECK(lr(groups) == doctest::Approx(0.1));
  }
  CHECK(lr(groups) > 0.05);
  CHECK(lr(groups) < 0.06);
}

TEST_CASE("a window without an end closes with the run, in its own unit") {
  Groups groups = sgd_groups();
  SchedulerContext context{groups};
  context.max_epochs = 10;
  context.max_iters = 500;
  PolyConfig config;
  CHECK(PolyLR(context, config).window().end == 10);
  config.by_epoch = false;
  CHECK(PolyLR(context, config).window().end == 500);
  config.end = 7;
  CHECK(PolyLR(context, config).window().end == 7);
  config.end.reset();
  PolyLR unbounded({groups}, config);
  CHECK_FALSE(unbounded.window().bounded());
}

TEST_CASE("a conversion to iterations scales the window and the shape") {
  Groups groups = sgd_groups();
  SchedulerContext context{groups};
  context.epoch_length = 100;
  context.max_epochs = 12;
  MultiStepConfig config;
  config.milestones = {2, 3};
  config.begin = 0.5;
  config.convert_to_iter_based = true;
  MultiStepLR scheduler(context, config);
  CHECK_FALSE(scheduler.by_epoch());
  CHECK(scheduler.window().begin == 50);
  CHECK(scheduler.window().end == 1200);
  CHECK(scheduler.state_dict().at("milestones") == Json::array({200, 300}));
}

TEST_CASE("momentum twins move momentum where there is one and beta1 otherwise") {
  LinearConfig config;
  config.start_factor = 0.5;
  config.end = 4;
  Groups sgd = sgd_groups();
  LinearMomentum on_momentum({sgd}, config);
  CHECK(on_momentum.param_name() == "momentum");
  CHECK(sgd[0].values.at("momentum") == 0.45);
  CHECK(sgd[0].values.at("lr") == 0.1);
  Groups adam = adam_groups();
  LinearMomentum on_beta1({adam}, config);
  CHECK(on_beta1.param_name() == "beta1");
  CHECK(adam[0].values.at("beta1") == 0.45);
  CHECK(adam[1].values.at("beta1") == 0.4);
  CHECK(adam[1].values.at("beta2") == 0.99);
  Groups bare{{"", {{"lr", 1.0}}}};
  const ConfigError error = config_error([&] { LinearMomentum({bare}, config); });
  CHECK(has(error.what(), "neither momentum nor beta1"));
}

TEST_CASE("stepping before the optimizer is warned about, once, and only then") {
  std::int64_t optimizer_steps = 0;
  Groups groups = sgd_groups();
  SchedulerContext context{groups};
  context.optimizer_steps = [&] { return optimizer_steps; };
  StepConfig config;
  config.step_size = 4;
  {
    const test::LogCapture log;
    StepLR scheduler(context, config);
    scheduler.step();
    CHECK(has(log.text(), "StepLR: stepped before the optimizer"));
    const std::size_t length = log.text().size();
    scheduler.step();
    CHECK(log.text().size() == length);
  }
  const test::LogCapture log;
  StepLR scheduler(context, config);
  ++optimizer_steps;
  scheduler.step();
  scheduler.step();
  CHECK(log.text().empty());
}

TEST_CASE("verbose logs every value that is set, and nothing is logged without it") {
  Groups groups = sgd_groups();
  ExponentialConfig config;
  config.gamma = 0.5;
  config.end = 3;
  {
    const test::LogCapture log;
    ExponentialLR scheduler({groups}, config);
    scheduler.step();
    CHECK(log.text().empty());
  }
  config.verbose = true;
  const test::LogCapture log;
  ExponentialLR scheduler({groups}, config);
  for (int i = 0; i < 4; ++i) scheduler.step();
  CHECK(has(log.text(), "ExponentialLR: lr of group 0 is now 1.2500e-02 (epoch 2)"));
  CHECK_FALSE(has(log.text(), "epoch 3"));
}

TEST_CASE("the plateau rule moves only on metrics and counts epochs otherwise") {
  Groups groups = sgd_groups();
  ReduceOnPlateauConfig config;
  config.patience = 1;
  config.factor = 0.5;
  ReduceOnPlateauLR scheduler({groups}, config);
  CHECK(scheduler.needs_metrics());
  CHECK(scheduler.by_epoch());
  for (double loss : {1.0, 1.0, std::nan("")}) {
    scheduler.step();
    scheduler.step({{"loss", loss}, {"acc", 0.0}});
  }
  CHECK(lr(groups) == 0.05);
  CHECK(scheduler.global_step() == 3);
  CHECK(scheduler.last_step() == 2);
  CHECK(scheduler.best() == 1.0);
  const ConfigError error = config_error([&] { scheduler.step({{"acc", 1.0}, {"top5", 1.0}}); });
  CHECK(error.path == "monitor");
  CHECK(has(error.what(), "acc, top5"));
  CHECK(scheduler.last_step() == 2);
}

TEST_CASE("metrics given to a scheduler that takes none are a bug, not an input") {
  Groups groups = sgd_groups();
  PolyLR scheduler({groups}, {});
  CHECK_THROWS_AS(scheduler.step(Metrics{{"loss", 1.0}}), InternalError);
}

TEST_CASE("a state carries options and counts under the peer's names") {
  Groups groups = adam_groups();
  StepConfig config;
  config.step_size = 4;
  config.end = 30;
  StepLR scheduler({groups}, config);
  scheduler.step();
  const Json state = scheduler.state_dict();
  CHECK(state.at("type") == "StepLR");
  CHECK(state.at("param_name") == "lr");
  CHECK(state.at("step_size") == 4);
  CHECK(state.at("gamma") == 0.1);
  CHECK(state.at("begin") == 0);
  CHECK(state.at("end") == 30);
  CHECK(state.at("by_epoch") == true);
  CHECK(state.at("verbose") == false);
  CHECK(state.at("last_step") == 1);
  CHECK(state.at("_global_step") == 1);
  CHECK(state.at("base_values") == Json::array({1e-3, 2e-3}));
  CHECK(state.at("_last_value") == Json::array({1e-3, 2e-3}));
}

TEST_CASE("a loaded state brings its options along and leaves the groups alone") {
  Groups groups = sgd_groups();
  StepConfig config;
  config.step_size = 2;
  StepLR saved({groups}, config);
  saved.step();
  const Json state = saved.state_dict();
  config.step_size = 100;
  StepLR loaded({groups}, config);
  groups[0].values["lr"] = 3;
  loaded.load_state_dict(state);
  CHECK(lr(groups) == 3);
  CHECK(loaded.state_dict() == state);
  loaded.step();
  CHECK(lr(groups) == doctest::Approx(0.3));
}

TEST_CASE("ColossalAI's shapes take the run's length as their total") {
  Groups groups = sgd_groups();
  SchedulerContext context{groups};
  context.max_iters = 40;
  LinearWarmupConfig config;
  config.warmup_steps = 3;
  TotalStepsScheduler<LinearWarmup> scheduler(context, config);
  CHECK_FALSE(scheduler.by_epoch());
  CHECK(scheduler.state_dict().at("total_steps") == 40);
  CHECK(lr(groups) == doctest::Approx(0.025));
}

TEST_CASE("the list of schedulers has every name of the peers once") {
  std::set<std::string> names;
  int count = 0;
  for_each_scheduler([&]<class S>(std::type_identity<S>, const std::string& name, std::string_view summary) {
    static_assert(std::is_base_of_v<ParamScheduler, S>);
    names.insert(name);
    ++count;
    CHECK_FALSE(summary.empty());
  });
  CHECK(static_cast<int>(names.size()) == count);
  for (const char* stem : {"Constant", "Linear", "CosineAnnealing", "CosineRestart", "Exponential", "Step", "MultiStep",
                           "Poly", "ReduceOnPlateau", "OneCycle"}) {
    CAPTURE(stem);
    CHECK(names.contains(cat(stem, "LR")));
    CHECK(names.contains(cat(stem, "Momentum")) == (std::string(stem) != "OneCycle"));
    CHECK(names.contains(cat(stem, "ParamScheduler")));
  }
  for (const char* name : {"CosineAnnealingWarmupLR", "FlatAnnealingLR", "FlatAnnealingWarmupLR", "LinearWarmupLR",
                           "MultiStepWarmupLR", "PolynomialLR", "PolynomialWarmupLR", "colossalai.CosineAnnealingLR",
                           "colossalai.MultiStepLR", "colossalai.OneCycleLR"}) {
    CAPTURE(name);
    CHECK(names.contains(name));
  }
  for_each_refused_scheduler([&](std::string_view name, std::string_view reason) {
    CHECK_FALSE(names.contains(std::string(name)));
    CHECK(has(std::string(reason), "function"));
  });
}

namespace {

// A shape that a user would write outside the library.
struct SawConfig : WindowConfig {
  std::int64_t teeth = 2;
};
template <class Visitor>
void own_fields(Visitor& v, SawConfig& c) {
  v.field("teeth", c.teeth, "steps between two returns to the initial value", at_least(1));
}
struct Saw {
  using Config = SawConfig;
  static constexpr std::string_view kName = "Saw";
  static constexpr std::string_view kSummary = "halves, then returns";
  static void to_iterations(Config& config, std::int64_t epoch_length) { config.teeth *= epoch_length; }
  Saw(Config options, const Window&) : config(options) {}
  double next(const SchedulePoint& at) const { return at.step % config.teeth == 0 ? at.base : at.current / 2; }
  Config config;
};

}  // namespace

TEST_CASE("a shape written outside the library gets windows, twins and states") {
  Groups groups = adam_groups();
  SawConfig config;
  config.teeth = 3;
  MomentumTwin<ShapedScheduler<Saw>> scheduler({groups}, config);
  CHECK(scheduler.type() == "SawMomentum");
  std::vector<double> seen;
  for (int i = 0; i < 4; ++i) {
    seen.push_back(groups[1].values.at("beta1"));
    scheduler.step();
  }
  CHECK(seen == std::vector<double>{0.8, 0.4, 0.2, 0.8});
  CHECK(scheduler.state_dict().at("teeth") == 3);
  config.teeth = 0;
  CHECK(config_error([&] { LearningRateTwin<ShapedScheduler<Saw>>({groups}, config); }).path == "teeth");
}

}  // namespace castor::strategy
