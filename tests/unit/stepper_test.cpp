// What Stepper and the optimizers' configs promise beside the arithmetic (optimizer_test.cpp): groups, names of
// states, norms and clipping, and what is refused.
#include "autograd/optim/stepper.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "autograd/optim/adafactor.h"
#include "autograd/optim/adagrad.h"
#include "autograd/optim/adam.h"
#include "autograd/optim/adamw8bit.h"
#include "autograd/optim/clip.h"
#include "autograd/optim/lamb.h"
#include "autograd/optim/sgd.h"
#include "core/base/error.h"
#include "core/base/philox.h"
#include "core/ops/cast.h"
#include "core/ops/random.h"

namespace castor::autograd {
namespace {

using Values = std::vector<double>;

Tensor tensor(const Values& values, const Shape& shape) {
  const std::vector<float> floats(values.begin(), values.end());
  return Tensor::from_values(floats, shape);
}
Values values_of(const Tensor& x) {
  const auto floats = x.to_vector<float>();
  return {floats.begin(), floats.end()};
}

struct Run {
  std::unique_ptr<Optimizer> optimizer;
  std::vector<Variable> variables;
  std::unique_ptr<Stepper> stepper;
};

/// Parameters {1, 2} with gradients {1, -1}, one for each group number.
Run plain_run(std::unique_ptr<Optimizer> optimizer, const std::vector<int>& groups) {
  Run run;
  run.optimizer = std::move(optimizer);
  std::vector<Part> parameters;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    Variable variable(tensor({1, 2}, {2}), true);
    variable.set_name(cat("w", i));
    variable.set_grad(tensor({1, -1}, {2}));
    run.variables.push_back(variable);
    parameters.push_back({variable, groups[i]});
  }
  run.stepper = std::make_unique<Stepper>(*run.optimizer, std::move(parameters));
  return run;
}

TEST_CASE("groups keep the hyper-parameters they name, take the others from the config, and follow changes") {
  SGDConfig config;
  config.lr = 0.5;
  auto optimizer =
      std::make_unique<SGD>(config, std::vector<ParamGroup>{{"slow", {{"lr", 0.25}}}, {"rest", {{"initial_lr", 9}}}});
  CHECK(optimizer->groups()[1].values.at("lr") == 0.5);
  CHECK(optimizer->groups()[1].values.at("initial_lr") == 9);
  CHECK(optimizer->groups()[0].values.at("momentum") == 0);
  CHECK(optimizer->add_param_group({"frozen", {{"lr", 0.0}}}) == 2);
  const Run run = plain_run(std::move(optimizer), {0, 1, 2});
  run.stepper->step();
  CHECK(values_of(run.variables[0].data()) == Values{0.75, 2.25});
  CHECK(values_of(run.variables[1].data()) == Values{0.5, 2.5});
  CHECK(values_of(run.variables[2].data()) == Values{1, 2});
  run.optimizer->groups()[1].values["lr"] = 1;
  run.stepper->step(0.5);
  CHECK(values_of(run.variables[1].data()) == Values{0, 3});
  CHECK(run.stepper->step_count() == 2);
}

TEST_CASE("an optimizer without groups has one of defaults") {
  const AdamW optimizer;
  REQUIRE(optimizer.groups().size() == 1);
  CHECK(optimizer.groups()[0].values ==
        std::map<std::string, double, std::less<>>{
            {"lr", 1e-3}, {"beta1", 0.9}, {"beta2", 0.999}, {"eps", 1e-8}, {"weight_decay", 1e-2}});
  CHECK(Adam().groups()[0].values.at("weight_decay") == 0);
}

TEST_CASE("states are named after their parameter and counted as the optimizer's memory") {
  const auto bytes = [] { return allocator(kCpu).stats().current[static_cast<std::size_t>(Category::optimizer)]; };
  const std::size_t before = bytes();
  const Run run = plain_run(std::make_unique<Adam>(), {0});
  const auto states = run.stepper->named_states();
  REQUIRE(states.size() == 2);
  CHECK(states.contains("w0/exp_avg"));
  CHECK(states.contains("w0/exp_avg_sq"));
  CHECK(bytes() > before);
  CHECK(plain_run(std::make_unique<SGD>(), {0}).stepper->named_states().empty());
}

TEST_CASE("the norm of the gradients is that of one long vector, and clipping scales to it") {
  std::vector<Variable> variables;
  double squares = 0, largest = 0;
  for (const std::int64_t count : {5000, 3, 1024, 7}) {
    variables.emplace_back(Tensor::zeros({count}, DType::f32), true);
    Values values;
    for (std::int64_t i = 0; i < count; ++i) {
      values.push_back(
          uniform_from_word(philox({1, static_cast<std::uint64_t>(count)}, static_cast<std::uint64_t>(i)).word[0]) -
          0.5f);
    }
    if (count == 3) continue;
    for (const double value : values) squares += value * value, largest = std::max(largest, std::abs(value));
    variables.back().set_grad(tensor(values, {count}));
  }
  const double norm = total_gradient_norm(variables);
  CHECK(norm == doctest::Approx(std::sqrt(squares)).epsilon(1e-6));
  CHECK(total_gradient_norm(variables, HUGE_VAL) == largest);
  CHECK_THROWS_AS(total_gradient_norm(variables, 3), ConfigError);

  CHECK(clip_factor(norm, 2 * norm) == 1);
  CHECK(clip_grad_norm(variables, 2 * norm) == norm);
  CHECK(total_gradient_norm(variables) == norm);
  CHECK(clip_grad_norm(variables, 1) == norm);
  CHECK(total_gradient_norm(variables) == doctest::Approx(1).epsilon(1e-5));
  clip_grad_value(variables, 1e-3);
  CHECK(total_gradient_norm(variables, HUGE_VAL) == static_cast<double>(1e-3f));
}

TEST_CASE("a norm that is not finite is told or thrown") {
  const Run run = plain_run(std::make_unique<SGD>(), {0, 0});
  run.variables[1].set_grad(tensor({HUGE_VAL, 1}, {2}));
  CHECK(run.stepper->gradient_norm() == HUGE_VAL);
  CHECK_THROWS_AS(clip_grad_norm(run.variables, 1, 2, true), Error);
  CHECK(values_of(run.variables[0].grad()) == Values{1, -1});
  run.variables[0].set_grad(tensor({std::nan(""), 1}, {2}));
  CHECK(std::isnan(run.stepper->gradient_norm()));
  CHECK(std::isnan(total_gradient_norm(run.variables, HUGE_VAL)));
}

TEST_CASE("FusedLAMB limits the norm of all gradients together, as they are after the step's scale") {
  FusedLAMBConfig config;
  config.max_grad_norm = 0.5;
  config.weight_decay = 0;
  config.bias_correction = false;
  config.betas = {0, 0.5};
  config.eps = 1;
  const Run run = plain_run(std::make_unique<FusedLAMB>(config), {0, 0});  // gradients of norm 2
  run.stepper->step(0.5);                                                  // 1, so the factor is 0.5 more
  const double g = 0.25, step = 1e-3 * g / (std::sqrt(0.5 * g * g) + 1);
  for (const Variable& variable : run.variables) {
    CHECK(values_of(variable.data())[0] == doctest::Approx(1 - step).epsilon(1e-7));
    CHECK(values_of(variable.data())[1] == doctest::Approx(2 + step).epsilon(1e-7));
  }
  for (const auto& [name, state] : run.stepper->named_states()) {
    if (name.ends_with("/exp_avg")) CHECK(values_of(state.tensor) == Values{g, -g});
  }
  config.max_grad_norm = 1;  // just enough
  const Run loose = plain_run(std::make_unique<FusedLAMB>(config), {0, 0});
  loose.stepper->step(0.5);
  CHECK(values_of(loose.stepper->named_states().at("w0/exp_avg").tensor) == Values{0.5, -0.5});
}

TEST_CASE("a state with an element a block is cut with its parameter and says where its piece lies") {
  AdamW8bitConfig config;
  config.min_8bit_size = 2000;
  AdamW8bit optimizer(config);
  Variable variable(Tensor::zeros({3000}, DType::f32), true), small(Tensor::zeros({1999}, DType::f32), true);
  variable.set_name("w");
  small.set_name("small");
  const auto part = [&](std::int64_t offset, std::int64_t count) {
    return Part{variable, 0, offset, Tensor::zeros({count}, DType::f32)};
  };
  Stepper stepper(optimizer, {part(1024, 1976), Part(small, 0)});
  const auto states = stepper.named_states();
  CHECK(states.size() == 6);
  CHECK(states.contains("small/exp_avg"));
  const StatePiece& scales = states.at("w/exp_avg_scale");
  CHECK(scales.shape == Shape{3});
  CHECK(scales.offset == 1);
  CHECK(scales.tensor.shape() == Shape{2});
  CHECK(scales.is_first);
  const StatePiece& codes = states.at("w/exp_avg_code");
  CHECK(codes.shape == Shape{3000});
  CHECK(codes.offset == 1024);
  CHECK(codes.tensor.shape() == Shape{1976});
  CHECK(codes.tensor.dtype() == DType::u8);
  CHECK(codes.tensor.to_vector<std::uint8_t>()[5] == 127);  // the code of 0
  CHECK(block_shape({5, 1024}) == Shape{5});
  CHECK(block_shape({}) == Shape{1});
}

TEST_CASE("Adagrad's sums start where its config says") {
  AdagradConfig config;
  config.initial_accumulator_value = 0.25;
  const Run run = plain_run(std::make_unique<Adagrad>(config), {0});
  CHECK(values_of(run.stepper->named_states().at("w0/sum").tensor) == Values{0.25, 0.25});
}

TEST_CASE("options out of range are refused with the option's name") {
  const auto path_of = [](const auto& make) -> std::string {
    try {
      make();
    } catch (const ConfigError& error) {
      return error.path;
    }
    return "";
  };
  SGDConfig sgd;
  sgd.nesterov = true;
  CHECK(path_of([&] { SGD{sgd}; }) == "nesterov");
  AdamWConfig adamw;
  adamw.betas = {0.9, 1.0};
  CHECK(path_of([&] { AdamW{adamw}; }) == "betas");
  adamw = {};
  adamw.lr = std::nan("");
  CHECK(path_of([&] { AdamW{adamw}; }) == "lr");
  LambConfig lamb;
  lamb.eps = -1;
  CHECK(path_of([&] { Lamb{lamb}; }) == "eps");
  AdafactorConfig adafactor;
  adafactor.lr = 0.1;
  CHECK(path_of([&] { Adafactor{adafactor}; }) == "lr");
  adafactor = {};
  adafactor.relative_step = false;
  CHECK(path_of([&] { Adafactor{adafactor}; }) == "lr");
}

/// Four bf16 parameters whose states are on the host, two of them cut in two, with gradients there, too, or in their
/// weights' place.
struct LateRun {
  AdamWConfig config;
  AdamW optimizer{config};
  std::vector<Tensor> places;  ///< by part
  std::unique_ptr<Stepper> stepper;

  bool keeps_weights;  ///< gradients are on the host

  explicit LateRun(bool may_be_late, bool keeps_the_weights = false) : keeps_weights(keeps_the_weights) {
    std::vector<Part> parts;
    for (int p = 0; p < 4; ++p) {
      Variable variable(Tensor::zeros({2048}, DType::bf16), true);
      variable.set_name(cat("w", p));
      for (const std::int64_t offset : p < 2 ? std::vector<std::int64_t>{0, 1024} : std::vector<std::int64_t>{0}) {
        const Tensor weights = Tensor::empty({p < 2 ? 1024 : 2048}, DType::bf16);
        fill_normal(weights, {static_cast<std::uint64_t>(p), static_cast<std::uint64_t>(offset)});
        places.push_back(weights);
        parts.emplace_back(variable, 0, offset, weights);
        parts.back().states_on = kHost;
      }
    }
    stepper = std::make_unique<Stepper>(optimizer, std::move(parts), Stepper::Options{.may_be_late = may_be_late});
  }

  /// What lies in a part's place: weights, or a gradient that waits.
  std::vector<float> at(std::size_t part) const { return cast(places[part], DType::f32).to_vector<float>(); }
  void step(std::uint64_t seed) {
    for (std::size_t i = 0; i < places.size(); ++i) {
      const Tensor gradient = keeps_weights ? Tensor::empty(places[i].shape(), DType::bf16, kHost) : places[i];
      fill_normal(gradient, {seed, i});
      stepper->parts()[i].gradient = gradient;
    }
    stepper->step(0.5);
    stepper->zero_grad();
  }
  /// The weights, then the states by their names.
  std::vector<std::vector<float>> values() {
    std::vector<std::vector<float>> all;
    for (std::size_t i = 0; i < places.size(); ++i) all.push_back(at(i));
    for (const auto& [name, piece] : stepper->named_states()) all.push_back(piece.tensor.to_vector<float>());
    return all;
  }
};

void check_late(bool keeps_weights) {
  LateRun at_once(false, keeps_weights), late(true, keeps_weights);
  const auto is_left = [&](std::size_t part) { return late.at(part) != at_once.at(part); };
  for (LateRun* run : {&at_once, &late}) {
    run->step(1);
    run->optimizer.groups()[0].values["lr"] = 0.25;  // for the next step
  }
  for (std::size_t part = 0; part < late.places.size(); ++part) CHECK(is_left(part));
  late.stepper->finish(3, 2);
  CHECK_FALSE(is_left(3));
  CHECK_FALSE(is_left(4));
  late.stepper->finish(0, 1);
  late.stepper->finish(0, 1);  // nothing is left of it
  CHECK_FALSE(is_left(0));
  CHECK(is_left(1));
  CHECK(is_left(5));
  CHECK(late.optimizer.groups()[0].values.at("lr") == 0.25);
  late.stepper->finish();
  CHECK(late.values() == at_once.values());

  // The next step, whoever asks for states, and weights that are taken back finish it, too.
  for (LateRun* run : {&at_once, &late}) run->step(2);
  CHECK(is_left(2));
  late.stepper->named_states();
  CHECK(late.values() == at_once.values());
  for (LateRun* run : {&at_once, &late}) run->step(3);
  for (LateRun* run : {&at_once, &late}) run->stepper->restore_weights();
  CHECK(late.values() == at_once.values());
}

TEST_CASE("a step that is finished late, in any order, has the bits and the hyper-parameters of one at once") {
  for (const bool keeps_weights : {false, true}) {
    CAPTURE(keeps_weights);
    check_late(keeps_weights);
  }
}

TEST_CASE("a late step that fails at a part goes on there, and steps nothing twice") {
  LateRun at_once(false), late(true);
  for (LateRun* run : {&at_once, &late}) run->step(1);
  int calls = 0;
  late.stepper->set_before_update([&](const Part&, const auto&) {
    if (++calls == 3) throw IoError("disk full", "states", 28);
  });
  CHECK_THROWS_AS(late.stepper->finish(), IoError);
  CHECK(late.at(1) == at_once.at(1));
  CHECK(late.at(2) != at_once.at(2));
  late.stepper->finish();
  CHECK(calls == 7);  // six parts, one of them twice
  CHECK(late.values() == at_once.values());
}

TEST_CASE("what has no gradient is not left for later, and nothing is where owners share statistics") {
  LateRun run(true);
  int stepped = 0;
  run.stepper->set_before_update([&](const Part&, const auto&) { ++stepped; });
  run.stepper->step();
  CHECK(stepped == 6);

  Lamb lamb{LambConfig{}};
  const Tensor place = full({1024}, 1, DType::bf16);
  Variable variable(Tensor::zeros({1024}, DType::bf16), true);
  std::vector<Part> parts{Part(variable, 0, 0, place)};
  parts[0].states_on = kHost;
  Stepper stepper(lamb, std::move(parts), {.may_be_late = true});
  stepper.parts()[0].gradient = place;
  stepper.step();
  const Tensor rounded = cast(stepper.named_states().at("/master").tensor, DType::bf16);
  CHECK(cast(place, DType::f32).to_vector<float>() == cast(rounded, DType::f32).to_vector<float>());
}

TEST_CASE("what a stepper cannot serve is refused with the parameter's name") {
  SGD sgd;
  const auto stepper = [&](Variable variable, int group, std::int64_t cut) {
    variable.set_name("blocks.0.weight");
    Stepper(sgd, {{variable, group}}, {.cut_elements = cut});
  };
  const Variable good(tensor({1, 2}, {2}), true);
  CHECK_THROWS_AS(stepper(good, 0, 1000), InternalError);
  CHECK_THROWS_AS(stepper(good, 1, 0), InternalError);
  CHECK_THROWS_AS(stepper(Variable(Tensor::zeros({2}, DType::f64), true), 0, 0), DTypeError);
  CHECK_THROWS_AS(stepper(Variable(Tensor::zeros({2, 3}, DType::f32).transpose(0, 1), true), 0, 0), ShapeError);

  const Run run = plain_run(std::make_unique<SGD>(), {0});
  run.optimizer->groups()[0].values["momentum"] = 0.9;
  CHECK_THROWS_AS(run.stepper->step(), ConfigError);
  run.optimizer->groups()[0].values.erase("lr");
  CHECK_THROWS_AS(run.stepper->step(), ConfigError);
}

}  // namespace
}  // namespace castor::autograd
