// When an optimizer steps and with what: windows, the short last one, clipping by value and by norm. One parameter
// whose gradient is the micro-step's input, so that every result can be told in advance.
#include "strategy/optim_wrapper.h"

#include <vector>

#include <doctest/doctest.h>

#include "autograd/ops/elementwise.h"
#include "autograd/ops/reduce.h"
#include "autograd/optim/sgd.h"
#include "core/base/error.h"

namespace castor::strategy {
namespace {

/// SGD with lr 1 over one parameter of two zeros.
struct Stepped {
  explicit Stepped(std::int64_t counts, std::optional<ClipConfig> clip = {},
                   std::optional<std::int64_t> max_micro_steps = {})
      : parameter(Tensor::zeros({2}, DType::f32), true),
        boosted(std::make_unique<autograd::SGD>(sgd()), make_unsharded({parameter}), {.clip = std::move(clip)}),
        wrapper(boosted, {.accumulative_counts = counts, .max_micro_steps = max_micro_steps}) {}

  static autograd::SGDConfig sgd() {
    autograd::SGDConfig config;
    config.lr = 1;
    return config;
  }
  /// A micro-step whose gradient is (a, b).
  UpdateResult step(float a, float b) {
    const autograd::Variable weights(Tensor::from_values(std::vector<float>{a, b}, {2}));
    return wrapper.update_params(autograd::sum(parameter * weights));
  }
  std::vector<float> value() const { return parameter.data().to_vector<float>(); }

  autograd::Variable parameter;
  BoostedOptimizer boosted;
  OptimWrapper wrapper;
};

TEST_CASE("without accumulation every micro-step is a step, and gradients do not carry over") {
  Stepped run(1);
  CHECK(run.step(1, 2).did_update);
  CHECK(run.step(1, 2).did_update);
  CHECK(run.value() == std::vector<float>{-2, -4});
  CHECK(run.wrapper.stepper().step_count() == 2);
  CHECK(run.wrapper.inner_count() == 2);
}

TEST_CASE("a window of three applies the mean of its gradients once") {
  Stepped run(3);
  CHECK_FALSE(run.step(3, 0).did_update);
  CHECK(run.wrapper.window_position() == 1);
  CHECK_FALSE(run.step(6, 3).did_update);
  CHECK(run.value() == std::vector<float>{0, 0});
  CHECK(run.step(0, 3).did_update);
  CHECK(run.value() == std::vector<float>{-3, -2});
  CHECK(run.wrapper.window_position() == 0);
  CHECK(run.wrapper.stepper().step_count() == 1);
}

TEST_CASE("the last window of a run closes early and is divided by its own length") {
  Stepped run(4, {}, 6);
  for (int i = 0; i < 4; ++i) run.step(4, 8);
  CHECK(run.value() == std::vector<float>{-4, -8});
  CHECK_FALSE(run.step(1, 1).did_update);
  CHECK(run.step(3, 1).did_update);
  CHECK(run.value() == std::vector<float>{-6, -9});
}

TEST_CASE("clipping by value limits each element of the window's mean, by norm all of them together") {
  ClipConfig by_value;
  by_value.type = "value";
  by_value.clip_value = 2.0;
  Stepped value(2, by_value);
  value.step(10, 1);
  CHECK_FALSE(value.step(-2, 2).grad_norm.has_value());
  CHECK(value.value() == std::vector<float>{-2, -1.5f});

  ClipConfig by_norm;
  by_norm.max_norm = 1.0;
  Stepped norm(2, by_norm);
  CHECK_FALSE(norm.step(6, 0).grad_norm.has_value());
  CHECK(norm.step(0, 8).grad_norm == doctest::Approx(5.0));
  CHECK(norm.value()[0] == doctest::Approx(-0.6).epsilon(1e-5));
  CHECK(norm.value()[1] == doctest::Approx(-0.8).epsilon(1e-5));
}

TEST_CASE("a window of less than one micro-step is refused") {
  CHECK_THROWS_WITH_AS(Stepped(0), doctest::Contains("accumulative_counts must be at least 1, got 0"), ConfigError);
}

}  // namespace
}  // namespace castor::strategy
