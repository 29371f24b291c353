// Steps whose gradients are limited in norm: where the device finds the limit by itself, the step has the bits of one
// that asks for the norm first, on every device, and the norms that it tells are the same. So do recorded steps.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>

#include <doctest/doctest.h>

#include "autograd/optim/adam.h"
#include "autograd/optim/clip.h"
#include "autograd/optim/lamb.h"
#include "autograd/optim/lion.h"
#include "autograd/optim/sgd.h"
#include "autograd/optim/stepper.h"
#include "core/device/recording_scope.h"
#include "core/ops/cast.h"
#include "core/ops/optim.h"
#include "core/ops/random.h"
#include "tests/support/op_check.h"

using namespace castor;
using namespace castor::autograd;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// Parameters of several sizes; one has no gradient, one no elements.
struct Limited {
  std::unique_ptr<Optimizer> optimizer;
  std::vector<Variable> variables;
  std::unique_ptr<Stepper> stepper;

  Limited(std::unique_ptr<Optimizer> its_optimizer, Device device, DType dtype, std::optional<Device> states_on)
      : optimizer(std::move(its_optimizer)) {
    std::vector<Part> parts;
    for (const std::int64_t count : {5 * 1024 + 77, 0, 1, 2048, 30}) {
      variables.emplace_back(random(count, dtype, device, 1), true);
      variables.back().set_name(cat("w", variables.size()));
      parts.emplace_back(variables.back(), 0);
      parts.back().states_on = states_on;
    }
    stepper = std::make_unique<Stepper>(*optimizer, std::move(parts));
  }

  static Tensor random(std::int64_t count, DType dtype, Device device, std::uint64_t key) {
    const Tensor x = Tensor::empty({count}, dtype);
    fill_normal(x, {key, static_cast<std::uint64_t>(count)});
    return to_device(x, device);
  }

  /// `odd`: the gradient of the parameter with one element.
  void take_gradients(std::uint64_t seed, std::optional<double> odd) {
    for (std::size_t i = 0; i + 1 < variables.size(); ++i) {
      const Tensor& x = variables[i].data();
      variables[i].set_grad(random(x.numel(), x.dtype(), x.device(), seed));
    }
    if (odd) fill(variables[2].grad(), *odd);
  }

  /// Weights and states.
  std::vector<std::vector<float>> values() {
    std::vector<std::vector<float>> all;
    const auto add = [&](const Tensor& x) { all.push_back(cast(to_device(x, kCpu), DType::f32).to_vector<float>()); };
    for (const Variable& variable : variables) add(variable.data());
    for (const auto& [name, piece] : stepper->named_states()) add(piece.tensor);
    return all;
  }
};

// NaN is NaN: which one is nobody's promise.
template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return std::ranges::equal(a, b, [](T x, T y) {
    return (std::isnan(x) && std::isnan(y)) || (x == y && std::signbit(x) == std::signbit(y));
  });
}

using MakeOptimizer = std::function<std::unique_ptr<Optimizer>()>;
struct Kind {
  const char* name;
  MakeOptimizer make;
};

std::vector<Kind> kinds() {
  AdamConfig climbing;
  climbing.amsgrad = climbing.maximize = true;
  climbing.weight_decay = 0.1;
  SGDConfig momentum;
  momentum.momentum = 0.9;
  FusedLAMBConfig lamb;
  lamb.max_grad_norm = 0.5;
  return {{"AdamW", [] { return std::make_unique<AdamW>(); }},
          {"Adam, amsgrad, maximize", [=] { return std::make_unique<Adam>(climbing); }},
          {"SGD", [=] { return std::make_unique<SGD>(momentum); }},
          {"Lion, which the host tells", [] { return std::make_unique<Lion>(); }},
          {"FusedLAMB, which has a limit of its own", [=] { return std::make_unique<FusedLAMB>(lamb); }}};
}

}  // namespace

TEST_CASE("what limits a norm is found on the device with the bits of the host's") {
  for (const Device device : test::test_devices()) {
    for (const std::int64_t count : {0, 1, 15, 16, 17, 100}) {
      const Tensor x = Tensor::empty({count}, DType::f64);
      fill_uniform(x, {5, static_cast<std::uint64_t>(count)});
      const Tensor squares = to_device(x, device);
      const double norm = Stepper::norm_of(x.to_vector<double>());
      for (const double scale : {1.0, 3.0, 1024.0}) {
        for (const double max_norm : {1e-3, 0.7, 1e9}) {
          const double want = 1 / scale * clip_factor(norm / scale, max_norm);
          CHECK(norm_limit(squares, scale, max_norm).to_vector<double>() == std::vector<double>{want});
        }
      }
    }
    const Tensor infinite = full({2}, kInfinity, DType::f64, device),
                 none = full({2}, std::nan(""), DType::f64, device);
    CHECK(norm_limit(infinite, 1, 1).to_vector<double>() == std::vector<double>{0});
    CHECK(std::isnan(norm_limit(none, 1, 1).to_vector<double>().front()));
    CHECK_THROWS_AS(norm_limit(full({2}, 1, DType::f32, device), 1, 1), DTypeError);
    CHECK_THROWS_AS(norm_limit(full({2, 2}, 1, DType::f64, device).transpose(0, 1), 1, 1), ShapeError);
  }
}

TEST_CASE("a factor on the device multiplies a step's own, and is refused where it is not one number of f64") {
  for (const Device device : test::test_devices()) {
    const Tensor gradient = Limited::random(2000, DType::bf16, device, 7);
    const auto adam = [&](double own, const Tensor& factor) {
      const AdamStep step{{Limited::random(2000, DType::f32, device, 8), gradient, {}},
                          Tensor::zeros({2000}, DType::f32, device),
                          Tensor::zeros({2000}, DType::f32, device),
                          {},
                          adam_scalars({}, 1, own)};
      adam_steps({&step, 1}, factor);
      return step.tensors.parameter.to_vector<float>();
    };
    const auto sgd = [&](float own, const Tensor& factor) {
      const SgdStep step{{Limited::random(2000, DType::f32, device, 8), gradient, {}}, {}, {.gradient_factor = own}};
      sgd_steps({&step, 1}, factor);
      return step.tensors.parameter.to_vector<float>();
    };
    const Tensor third = full({1}, 1.0 / 3, DType::f64, device);
    CHECK(adam(-1, third) == adam(-1.0 / 3, {}));
    CHECK(sgd(-1, third) == sgd(static_cast<float>(-1.0 / 3), {}));
    CHECK(sgd(-1, third) != sgd(-1, {}));
    CHECK_THROWS_AS(adam(1, full({1}, 1, DType::f32, device)), DTypeError);
    CHECK_THROWS_AS(sgd(1, full({2}, 1, DType::f64, device)), ShapeError);
  }
}

TEST_CASE("a step's numbers may lie on the device, and are refused where they do not fit") {
  for (const Device device : test::test_devices()) {
    const Tensor gradient = Limited::random(2000, DType::bf16, device, 7);
    const auto adam = [&](const AdamScalars& scalars, const Tensor& place) {
      const AdamStep step{{Limited::random(2000, DType::f32, device, 8), gradient, {}},
                          Tensor::zeros({2000}, DType::f32, device),
                          Tensor::zeros({2000}, DType::f32, device),
                          {},
                          scalars,
                          place};
      adam_steps({&step, 1}, full({1}, 0.5, DType::f64, device));
      return step.tensors.parameter.to_vector<float>();
    };
    const AdamScalars here = adam_scalars({}, 1), there = adam_scalars({.lr = 0.1, .weight_decay = 0.1}, 3, 2);
    const Tensor places = Tensor::empty({2, static_cast<std::int64_t>(sizeof(AdamScalars))}, DType::u8, device);
    places.select(0, 1).copy_from_host(&there, sizeof(there));
    CHECK(adam(here, places.select(0, 1)) == adam(there, {}));
    CHECK(adam(here, {}) != adam(there, {}));
    CHECK_THROWS_AS(adam(here, places), ShapeError);
  }
}

TEST_CASE("a step limited in norm has the bits of one that is told the factor, whoever finds it") {
  for (const Device device : test::test_devices()) {
    for (const Kind& kind : kinds()) {
      for (const DType dtype : {DType::f32, DType::bf16}) {
        for (const std::optional<Device> states_on : {std::optional<Device>{}, std::optional<Device>{kHost}}) {
          CAPTURE(device);
          CAPTURE(std::string(kind.name));
          CAPTURE(dtype_name(dtype));
          CAPTURE(states_on.has_value());
          Limited told(kind.make(), device, dtype, states_on), limited(kind.make(), device, dtype, states_on);
          std::uint64_t seed = 2;
          const auto step = [&](double scale, std::optional<double> max_norm, std::optional<double> odd) {
            ++seed;
            for (Limited* each : {&told, &limited}) each->take_gradients(seed, odd);
            const std::vector<double> squares = told.stepper->gradient_squares();
            const double norm = Stepper::norm_of(squares) / scale;
            told.stepper->step(max_norm ? 1 / scale * clip_factor(norm, *max_norm) : 1 / scale);
            CHECK(same_bits(limited.stepper->step_limited(scale, max_norm), squares));
            const auto want = told.values(), got = limited.values();
            REQUIRE(got.size() == want.size());
            for (std::size_t i = 0; i < got.size(); ++i) CHECK(same_bits(got[i], want[i]));
            return norm;
          };
          CHECK(step(1, 0.5, {}) > 0.5);
          CHECK(step(512, 0.5, {}) < 0.5);
          step(3, std::nullopt, {});
          CHECK(std::isinf(step(1, 1, kInfinity)));
          CHECK(std::isnan(step(1, 1, std::nan(""))));
          CHECK(limited.stepper->step_count() == 5);
        }
      }
    }
  }
}

TEST_CASE(
    "recorded steps have the bits of those that go op by op, whatever the schedule, the limit and the gradients") {
  for (const Device device : test::test_devices()) {
    if (!device.is_cuda()) continue;
    for (const DType dtype : {DType::f32, DType::bf16}) {
      for (const bool climbs : {false, true}) {
        AdamConfig config;
        config.amsgrad = config.maximize = climbs;
        config.weight_decay = 0.1;
        Limited plain(std::make_unique<Adam>(config), device, dtype, {});
        Limited recorded(std::make_unique<Adam>(config), device, dtype, {});
        recorded.stepper->record_steps();
        std::int64_t told = 0;
        recorded.stepper->set_before_update([&](const Part&, const auto&) { ++told; });
        std::vector<Tensor> gradients;  // of recorded, in the same places each time
        for (std::size_t i = 0; i + 1 < recorded.variables.size(); ++i) {
          const Tensor& x = recorded.variables[i].data();
          gradients.push_back(Tensor::empty(x.shape(), x.dtype(), device));
        }
        for (std::int64_t step = 0; step < 16; ++step) {
          CAPTURE(device);
          CAPTURE(dtype_name(dtype));
          CAPTURE(step);
          for (Limited* each : {&plain, &recorded}) {
            each->optimizer->groups()[0].values["lr"] = 0.01 * static_cast<double>(step + 1);
            each->take_gradients(static_cast<std::uint64_t>(step), {});
          }
          for (std::size_t i = 0; i < gradients.size(); ++i) {
            copy_into(recorded.variables[i].grad(), gradients[i]);
            recorded.variables[i].set_grad(gradients[i]);
          }
          // Three kinds by turns, and a limit that comes once.
          const std::optional<double> limit = step == 9 ? 0.25 : step % 2 == 0 ? std::optional(0.5) : std::nullopt;
          if (step % 4 == 3) {
            for (Limited* each : {&plain, &recorded}) each->stepper->step(0.1 * static_cast<double>(step));
          } else {
            const std::vector<double> squares = plain.stepper->step_limited(2, limit);
            CHECK(recorded.stepper->step_limited(2, limit) == squares);
          }
          REQUIRE(recorded.values() == plain.values());
        }
        CHECK(told == 16 * 4);
        // The first of each kind went op by op, and all of them on a device that records nothing.
        const bool records = RecordingScope(backend(device)).has_begun();
        CHECK(recorded.stepper->recorded_steps() == (records ? 16 - 4 : 0));
        CHECK(recorded.stepper->step_count() == 16);
        // Without any gradient: moments and decay go on.
        for (int step = 0; step < 3; ++step) {
          for (Limited* each : {&plain, &recorded}) {
            each->stepper->zero_grad();
            CHECK(each->stepper->step_limited(1, 0.5) == std::vector<double>(each->variables.size(), 0.0));
          }
          REQUIRE(recorded.values() == plain.values());
        }
      }
    }
  }
}
