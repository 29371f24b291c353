// What schedulers refuse, and how: the error names the option, several mistakes come together, and neither groups nor a
// scheduler that already runs are changed by what was refused.
#include <cmath>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "core/base/json.h"
#include "strategy/scheduler.h"
#include "tests/support/scheduler_groups.h"

namespace castor::strategy {
namespace {

using namespace castor::test::schedulers;

}  // namespace

TEST_CASE("a window that starts after the run's end is refused and says that the end is the run's") {
  Groups groups = sgd_groups();
  SchedulerContext context{groups};
  context.max_epochs = 10;
  PolyConfig config;
  config.begin = 12;
  const ConfigError error = config_error([&] { PolyLR(context, config); });
  CHECK(error.path == "begin");
  CHECK(has(error.what(), "end 10 (the run's length) epochs"));
}

TEST_CASE("a conversion that cannot be done is refused at its option") {
  Groups groups = sgd_groups();
  PolyConfig config;
  config.convert_to_iter_based = true;
  CHECK(config_error([&] { PolyLR({groups}, config); }).path == "convert_to_iter_based");
  SchedulerContext context{groups};
  context.epoch_length = 0;
  CHECK(has(config_error([&] { PolyLR(context, config); }).what(), "got 0"));
  context.epoch_length = 10;
  config.by_epoch = false;
  CHECK(config_error([&] { PolyLR(context, config); }).path == "convert_to_iter_based");
  CosineAnnealingConfig huge;
  huge.convert_to_iter_based = true;
  huge.T_max = std::numeric_limits<std::int64_t>::max();
  CHECK(config_error([&] { CosineAnnealingLR(context, huge); }).path == "T_max");
}

TEST_CASE("fractions of a step are refused where nothing makes them whole") {
  PolyConfig config;
  config.begin = 0.5;
  const ConfigError error = refusal<PolyLR>(config);
  CHECK(error.path == "begin");
  CHECK(has(error.what(), "convert_to_iter_based"));
}

TEST_CASE("generic twins move the parameter that is named and refuse one that a group lacks") {
  Groups groups = adam_groups();
  StepParamScheduler::Config config;
  config.step_size = 1;
  config.param_name = "weight_decay";
  StepParamScheduler scheduler({groups}, config);
  scheduler.step();
  CHECK(groups[0].values.at("weight_decay") == doctest::Approx(0.01));
  config.param_name = "weight_decai";
  const ConfigError error = config_error([&] { StepParamScheduler({groups}, config); });
  CHECK(error.path == "param_name");
  CHECK(has(error.what(), "beta1, beta2"));
  config.param_name = "";
  CHECK(config_error([&] { StepParamScheduler({groups}, config); }).path == "param_name");
}

TEST_CASE("wrong options are refused by name and leave the groups as they were") {
  ConstantConfig constant;
  constant.factor = 0;
  CHECK(refusal<ConstantLR>(constant).path == "factor");
  LinearConfig linear;
  linear.end_factor = 1.5;
  CHECK(refusal<LinearLR>(linear).path == "end_factor");
  CosineAnnealingConfig cosine;
  cosine.eta_min = 0;
  cosine.eta_min_ratio = 0.1;
  CHECK(refusal<CosineAnnealingLR>(cosine).path == "eta_min_ratio");
  cosine.eta_min.reset();
  cosine.T_max = 0;
  CHECK(refusal<CosineAnnealingLR>(cosine).path == "T_max");
  CosineRestartConfig restart;
  restart.periods = {3, 4};
  restart.eta_min = 0;
  CHECK(refusal<CosineRestartLR>(restart).path == "restart_weights");
  restart.restart_weights = {1, 1};
  restart.eta_min.reset();
  CHECK(refusal<CosineRestartLR>(restart).path == "eta_min");
  CHECK(refusal<ExponentialLR>({}).path == "gamma");
  CHECK(refusal<StepLR>({}).path == "step_size");
  CHECK(refusal<MultiStepLR>({}).path == "milestones");
  PolyConfig poly;
  poly.power = -1;
  CHECK(refusal<PolyLR>(poly).path == "power");
  poly.power = std::nan("");
  CHECK(refusal<PolyLR>(poly).path == "power");
  PolyConfig window;
  window.begin = 5;
  window.end = 5;
  CHECK(refusal<PolyLR>(window).path == "end");
  window.end = 6;
  window.last_step = -2;
  CHECK(refusal<PolyLR>(window).path == "last_step");
}

TEST_CASE("all mistakes of one scheduler come in one message") {
  StepConfig config;
  config.gamma = -1;
  config.last_step = -5;
  const ConfigError error = refusal<StepLR>(config);
  for (const char* part : {"StepLR", "step_size", "gamma", "last_step"}) {
    CAPTURE(part);
    CHECK(has(error.what(), part));
  }
}

TEST_CASE("one-cycle refuses what it cannot carry out") {
  CHECK(refusal<OneCycleLR>({}).path == "eta_max");
  OneCycleConfig config;
  config.eta_max = 0.5;
  config.end = 20;
  config.pct_start = 0.05;
  CHECK(refusal<OneCycleLR>(config).path == "pct_start");
  config.pct_start = 0.3;
  config.total_steps = 10;
  CHECK(refusal<OneCycleLR>(config).path == "total_steps");
  config.total_steps.reset();
  config.eta_max = std::vector<double>{0.5, 0.4};
  CHECK(refusal<OneCycleLR>(config).path == "eta_max");
  Groups groups = sgd_groups();
  OneCycleParamScheduler::Config generic;
  generic.eta_max = 0.5;
  generic.param_name = "momentum";
  CHECK(config_error([&] { OneCycleParamScheduler({groups}, generic); }).path == "param_name");
}

TEST_CASE("one-cycle stops with a clear error past its last step when the window is open") {
  Groups groups = sgd_groups();
  OneCycleConfig config;
  config.eta_max = 0.5;
  config.total_steps = 3;
  OneCycleLR scheduler({groups}, config);
  for (int i = 0; i < 3; ++i) scheduler.step();
  const double before = lr(groups);
  CHECK(config_error([&] { scheduler.step(); }).path == "total_steps");
  CHECK(lr(groups) == before);
  CHECK(scheduler.last_step() == 3);
  CHECK(scheduler.global_step() == 3);
}

TEST_CASE("resuming by last_step needs the initial values in the groups") {
  Groups groups = sgd_groups();
  StepConfig config;
  config.step_size = 4;
  config.last_step = 2;
  CHECK(config_error([&] { StepLR({groups}, config); }).path == "last_step");
  groups[0].values["initial_lr"] = 0.4;
  StepLR scheduler({groups}, config);
  CHECK(scheduler.last_step() == 3);
  scheduler.step();
  CHECK(lr(groups) == doctest::Approx(0.01));
}

TEST_CASE("a value that is not finite is refused before any group changes") {
  Groups groups = adam_groups();
  ExponentialConfig config;
  config.gamma = 0.5;
  ExponentialLR scheduler({groups}, config);
  groups[1].values["lr"] = std::numeric_limits<double>::infinity();
  const ConfigError error = config_error([&] { scheduler.step(); });
  CHECK(has(error.what(), "lr of group 1 has no finite value"));
  CHECK(lr(groups, 0) == 1e-3);
  CHECK(scheduler.global_step() == 0);
}

TEST_CASE("the plateau rule refuses iterations, conversions and bounds that do not fit the groups") {
  ReduceOnPlateauConfig config;
  config.by_epoch = false;
  CHECK(refusal<ReduceOnPlateauLR>(config).path == "by_epoch");
  config.by_epoch = true;
  config.convert_to_iter_based = true;
  CHECK(refusal<ReduceOnPlateauLR>(config).path == "convert_to_iter_based");
  config.convert_to_iter_based = false;
  config.min_value = std::vector<double>{0.1, 0.2};
  CHECK(refusal<ReduceOnPlateauLR>(config).path == "min_value");
  config.min_value = 0.0;
  config.rule = "lower";
  config.factor = 1;
  const ConfigError error = refusal<ReduceOnPlateauLR>(config);
  CHECK(error.path == "rule");
  CHECK(has(error.what(), "factor"));
}

TEST_CASE("a state that does not fit is refused and nothing of it is taken over") {
  Groups groups = sgd_groups();
  OneCycleConfig config;
  config.eta_max = 0.5;
  config.total_steps = 20;
  OneCycleLR scheduler({groups}, config);
  scheduler.step();
  const Json good = scheduler.state_dict();
  const auto refused = [&](const std::function<void(Json&)>& spoil) {
    Json state = good;
    state["last_step"] = 7;
    spoil(state);
    const std::string text = format_error([&] { scheduler.load_state_dict(state); });
    CHECK(scheduler.state_dict() == good);
    CHECK(has(text, "state of OneCycleLR"));
    return text;
  };
  CHECK(has(refused([](Json& s) { s["type"] = "StepLR"; }), "expected OneCycleLR, got StepLR"));
  CHECK(has(refused([](Json& s) { s.erase("base_values"); }), "base_values"));
  CHECK(has(refused([](Json& s) { s["extra"] = 1; }), "extra"));
  CHECK(has(refused([](Json& s) { s["last_step"] = "many"; }), "last_step"));
  CHECK(has(refused([](Json& s) { s["last_step"] = std::numeric_limits<std::int64_t>::max(); }), "last_step"));
  CHECK(has(refused([](Json& s) { s["end"] = 0; }), "end"));
  CHECK(has(refused([](Json& s) { s["base_values"] = Json::array({1.0, 2.0}); }), "each of 1 groups, got 2"));
  CHECK(has(refused([](Json& s) { s["three_phase"] = 1; }), "three_phase"));
  CHECK(has(refused([](Json& s) { s["pct_start"] = nullptr; }), "pct_start"));
  CHECK(has(refused([](Json& s) { s = Json::array(); }), "object"));
  Json state = good;
  state["anneal_strategy"] = "cubic";
  CHECK(config_error([&] { scheduler.load_state_dict(state); }).path == "anneal_strategy");
  state = good;
  state["param_name"] = "eps";
  CHECK(config_error([&] { scheduler.load_state_dict(state); }).path == "param_name");
  CHECK(scheduler.state_dict() == good);
}

TEST_CASE("ColossalAI's shapes refuse a warm-up that leaves no steps and a rate below zero") {
  CosineWarmupConfig cosine;
  cosine.total_steps = 10;
  cosine.warmup_steps = 10;
  CHECK(refusal<TotalStepsScheduler<CosineWarmup>>(cosine).path == "warmup_steps");
  LinearWarmupConfig linear;
  linear.total_steps = 10;
  linear.end = 30;
  CHECK(refusal<TotalStepsScheduler<LinearWarmup>>(linear).path == "total_steps");
  MultiStepWarmupConfig steps;
  steps.total_steps = 10;
  steps.milestones = {11};
  CHECK(refusal<TotalStepsScheduler<MultiStepWarmup>>(steps).path == "milestones");
  Groups bare{{"", {{"lr", 1.0}}}};
  OneCycleTotalConfig cycle;
  cycle.total_steps = 10;
  CHECK(config_error([&] { TotalStepsScheduler<OneCycleTotal>({bare}, cycle); }).path == "cycle_momentum");
  cycle.cycle_momentum = false;
  CHECK_NOTHROW(TotalStepsScheduler<OneCycleTotal>({bare}, cycle));
}

}  // namespace castor::strategy
