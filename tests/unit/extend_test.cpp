// The example of a user's own parts: the op against f64 with its gradients, the optimizer cut anywhere, the data set.
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "autograd/graph.h"
#include "autograd/optim/stepper.h"
#include "samples/extend/signum.h"
#include "samples/extend/spiral_net.h"
#include "samples/extend/spirals.h"
#include "samples/extend/swish.h"
#include "tests/support/op_check.h"

namespace extend {
namespace {

using namespace castor;
using autograd::Variable;

std::vector<test::OpCase> swish_cases() {
  return {{"one slope a feature", {{{5, 7}, -4, 4}, {{7}, 0.5, 2}}},
          {"one slope for all", {{{3, 2, 4}, -4, 4}, {{1}, 0.5, 2}}},
          {"one slope an element", {{{6}, -4, 4}, {{6}, 0.5, 2}}},
          {"nothing", {{{0, 3}, -4, 4}, {{3}, 0.5, 2}}},
          {"scalars", {{{}, -4, 4}, {{}, 0.5, 2}}}};
}

TEST_CASE("swish is x sigmoid(beta x)") {
  test::OpCheck check;
  check.op = "swish";
  check.run = [](const test::Tensors& in) -> test::Tensors { return {swish(Variable(in[0]), Variable(in[1])).data()}; };
  check.reference = [](const test::Arrays& in) -> test::Arrays {
    const test::Array beta = in[1].broadcast_to(in[0].shape);
    test::Array y(in[0].shape);
    for (std::int64_t i = 0; i < y.numel(); ++i) y[i] = in[0][i] / (1 + std::exp(-beta[i] * in[0][i]));
    return {y};
  };
  check.scale = 0.5;
  check.any_threads = true;
  check_op(check, swish_cases());
}

TEST_CASE("the gradients of swish are those of differences") {
  test::GradientCheck check = test::variable_check(
      "swish", [](const std::vector<Variable>& in) -> std::vector<Variable> { return {swish(in[0], in[1])}; });
  check.scale = 0.5;
  check.slack = 4;
  check_gradient(check, swish_cases());
}

TEST_CASE("swish refuses slopes that do not fit") {
  const Variable x(Tensor::zeros({2, 3}, DType::f32));
  CHECK_THROWS_AS(swish(x, Variable(Tensor::zeros({2}, DType::f32))), ShapeError);
  CHECK_THROWS_AS(swish(x, Variable(Tensor::zeros({4, 2, 3}, DType::f32))), ShapeError);
  CHECK_THROWS_AS(swish(x, Variable(Tensor::zeros({3}, DType::f64))), DTypeError);
  CHECK_THROWS_AS(swish(Variable(Tensor::zeros({3}, DType::i64)), Variable(Tensor::zeros({3}, DType::i64))),
                  DTypeError);
}

/// Three steps on one parameter of 3000 elements; returns its values.
std::vector<float> after_steps(std::int64_t cut_elements) {
  std::vector<float> values(3000), gradients(3000);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 17) - 8.0f;
  Signum optimizer({.lr = 0.5, .momentum = 0.5, .weight_decay = 0.25});
  const Variable parameter(Tensor::from_values(values, {3000}), true);
  parameter.set_name("weight");
  autograd::Stepper stepper(optimizer, {{parameter, 0}}, {.cut_elements = cut_elements});
  for (int step = 0; step < 3; ++step) {
    for (std::size_t i = 0; i < gradients.size(); ++i) gradients[i] = std::sin(static_cast<float>(i + 1000 * step));
    parameter.set_grad(Tensor::from_values(gradients, {3000}));
    stepper.step(0.5);
  }
  return parameter.data().to_vector<float>();
}

TEST_CASE("Signum steps by the sign of the mean gradient and gives the same bits however it is cut") {
  const std::vector<float> whole = after_steps(0);
  CHECK(after_steps(1024) == whole);
  CHECK(after_steps(2048) == whole);
  // By hand for element 0: p = -8; gradients sin(0), sin(1000), sin(2000), each halved.
  double p = -8, m = 0;
  for (int step = 0; step < 3; ++step) {
    m = 0.5 * m + 0.5 * 0.5 * std::sin(1000.0 * step);
    p -= 0.5 * ((m > 0 ? 1 : m < 0 ? -1 : 0) + 0.25 * p);
  }
  CHECK(whole[0] == doctest::Approx(p).epsilon(1e-6));
}

TEST_CASE("points of a spiral depend on their number and the seed only") {
  SpiralsConfig config;
  config.seed = 5;
  const Spirals data(config);
  const autograd::Batch both = data.batch(std::vector<std::int64_t>{7, 2000});
  const autograd::Batch one = data.batch(std::vector<std::int64_t>{2000});
  CHECK(both.inputs.narrow(0, 1, 1).reshape({2}).to_vector<float>() == one.inputs.reshape({2}).to_vector<float>());
  CHECK(both.targets.to_vector<std::int64_t>() == std::vector<std::int64_t>{7 % 3, 2000 % 3});
  config.seed = 6;
  CHECK(Spirals(config).batch(std::vector<std::int64_t>{7}).inputs.to_vector<float>() !=
        data.batch(std::vector<std::int64_t>{7}).inputs.to_vector<float>());
}

TEST_CASE("the model's own parameters are named and trained") {
  SpiralNet model({.width = 8, .classes = 3}, {});
  initialize(model, 1);
  std::vector<std::string> names;
  for (const auto& [name, parameter] : model.named_parameters()) names.push_back(name);
  CHECK(names == std::vector<std::string>{"layers.0.weight", "layers.0.bias", "layers.1.beta", "layers.2.weight",
                                          "layers.2.bias", "layers.3.beta", "layers.4.weight", "layers.4.bias"});
  const autograd::Batch batch = Spirals(SpiralsConfig{}).batch(std::vector<std::int64_t>{0, 1, 2, 3});
  backward(autograd::total_loss(model.loss(batch)));
  for (const auto& [name, parameter] : model.named_parameters()) {
    CAPTURE(name);
    CHECK(parameter.grad().defined());
  }
}

}  // namespace
}  // namespace extend
