// Replays the trajectories that record_losses.py made with PyTorch's SGD, Adam and AdamW, and with Lamb and Adafactor
// as the papers write them in f64.
//
// Each case goes from the options as a config writes them to the values of one parameter after every step, once whole
// and once cut into blocks, which must give the same bits.
// Delicate: the parameter is larger than one block of statistics, so that Lamb's and Adafactor's sums cross a boundary.
#include <cmath>
#include <memory>
#include <vector>

#include <doctest/doctest.h>

#include "autograd/optim/stepper.h"
#include "strategy/builtins.h"
#include "strategy/registry.h"
#include "tests/parity/counted_numbers.h"
#include "tests/parity/recorded_data.h"

namespace castor {
namespace {

// Ten steps in f32, each rounding a few times by at most 6e-8 of the value.
constexpr double kTolerance = 2e-6;

constexpr std::int64_t kRows = 40;
constexpr std::int64_t kColumns = 31;

/// The gradient of step `step`: rows of different sizes, sizes that change from step to step.
std::vector<float> gradient(int step) {
  const std::string name = "gradient/" + std::to_string(step);
  std::vector<float> values = test::counted_floats(name, kRows * kColumns, 0, 1.0 + 0.5 * (step % 3));
  const std::vector<float> rows = test::counted_floats("gradient/rows/" + std::to_string(step), kRows, 0.6, 0.5);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] *= rows[i / kColumns];
  return values;
}

/// The parameter after each step.
std::vector<std::vector<float>> play(const strategy::Registry& registry, const Json& run, std::size_t steps,
                                     std::int64_t cut_elements) {
  Shape shape;
  for (const Json& size : run.at("shape")) shape.push_back(size.get<std::int64_t>());
  const auto optimizer = registry.optimizers.build(test::typed_config(run.at("optimizer")));
  const autograd::Variable parameter(Tensor::from_values(test::counted_floats("parameter", shape.numel()), shape),
                                     true);
  parameter.set_name("parameter");
  autograd::Stepper stepper(*optimizer, {{parameter, 0}}, {.cut_elements = cut_elements});
  std::vector<std::vector<float>> trajectory;
  for (std::size_t step = 0; step < steps; ++step) {
    parameter.set_grad(Tensor::from_values(gradient(static_cast<int>(step)), shape));
    stepper.step();
    stepper.zero_grad();
    trajectory.push_back(parameter.data().to_vector<float>());
  }
  return trajectory;
}

double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
  return std::sqrt(sum);
}

}  // namespace

TEST_CASE("every optimizer follows its peer or its paper over ten steps, whole and cut into blocks") {
  strategy::Registry registry;
  strategy::add_builtins(registry);
  const Json recorded = test::recorded_file("optimizers.json");
  const std::vector<float> start = test::counted_floats("parameter", kRows * kColumns);
  for (const Json& run : recorded.at("cases")) {
    INFO(dump_json(run.at("optimizer")));
    const auto ours = play(registry, run, run.at("values").size(), 0);
    for (std::size_t step = 0; step < ours.size(); ++step) {
      CAPTURE(step);
      for (std::size_t i = 0; i < recorded.at("watched").size(); ++i) {
        const auto index = recorded.at("watched").at(i).get<std::size_t>();
        CAPTURE(index);
        const auto theirs = run.at("values").at(step).at(i).get<double>();
        CHECK(std::abs(static_cast<double>(ours[step][index]) - theirs) <=
              kTolerance * std::max(1.0, std::abs(theirs)));
      }
      CHECK(distance(ours[step], start) == doctest::Approx(run.at("moved").at(step).get<double>()).epsilon(1e-5));
    }
    CHECK(play(registry, run, ours.size(), autograd::kBlockElements) == ours);
  }
}

}  // namespace castor
