// Two proofs for every optimizer: several steps equal a naive computation in f64, and a parameter cut at block
// boundaries gives the bits of the uncut one. Then the same table for undefined gradients, 16-bit weights, a run that
// is taken up again, and meta.
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "autograd/optim/stepper.h"
#include "core/base/error.h"
#include "core/base/philox.h"
#include "core/ops/cast.h"
#include "tests/unit/optimizer_cases.h"

namespace castor::autograd {
namespace {

using namespace castor::autograd::test;

/// Numbers in [-1, 1) that depend on (stream, i) only, exact in bf16 when `coarse`.
Values numbers(std::int64_t count, std::uint64_t stream, bool coarse = false) {
  Values values;
  for (std::int64_t i = 0; i < count; ++i) {
    const double uniform = uniform_from_word(philox({7, stream}, static_cast<std::uint64_t>(i)).word[0]);
    values.push_back(coarse ? std::floor(uniform * 128) / 64 - 1 : 2 * uniform - 1);
  }
  return values;
}

Tensor tensor(const Values& values, const Shape& shape, DType dtype = DType::f32) {
  const std::vector<float> floats(values.begin(), values.end());
  return cast(Tensor::from_values(floats, shape), dtype);
}

Values values_of(const Tensor& x) {
  const auto floats = cast(x, DType::f32).to_vector<float>();
  return {floats.begin(), floats.end()};
}

bool same_bits(const Tensor& a, const Tensor& b) {
  const std::size_t bytes = static_cast<std::size_t>(a.numel()) * dtype_size(a.dtype());
  std::vector<char> left(bytes), right(bytes);
  a.copy_to_host(left.data(), bytes);
  b.copy_to_host(right.data(), bytes);
  return a.dtype() == b.dtype() && a.shape() == b.shape() && left == right;
}

/// Rows that straddle blocks, a vector with a short last block, a stack of matrices, a single block, a scalar.
const std::vector<Shape>& shapes() {
  static const std::vector<Shape> kShapes{{37, 123}, {2500}, {3, 20, 41}, {16, 64}, {}};
  return kShapes;
}

struct Run {
  std::unique_ptr<Optimizer> optimizer;
  std::vector<Variable> variables;
  std::unique_ptr<Stepper> stepper;
};

Run make_run(const OptimizerCase& c, std::int64_t cut, DType dtype = DType::f32) {
  Run run;
  run.optimizer = c.make();
  std::vector<Part> parameters;
  for (std::size_t i = 0; i < shapes().size(); ++i) {
    Variable variable(tensor(numbers(shapes()[i].numel(), i), shapes()[i], dtype), true);
    variable.set_name(cat("p", i));
    run.variables.push_back(variable);
    parameters.push_back({variable, 0});
  }
  run.stepper = std::make_unique<Stepper>(*run.optimizer, std::move(parameters), Stepper::Options{.cut_elements = cut});
  return run;
}

Values gradient(std::size_t parameter, int t) {
  return numbers(shapes()[parameter].numel(), 100 * static_cast<std::uint64_t>(t) + parameter, true);
}

void set_gradients(const Run& run, int t, DType dtype) {
  for (std::size_t i = 0; i < run.variables.size(); ++i)
    run.variables[i].set_grad(tensor(gradient(i, t), shapes()[i], dtype));
}

constexpr int kSteps = 5;

TEST_CASE("five steps of every optimizer equal a naive computation in f64") {
  for (const OptimizerCase& c : all_cases()) {
    CAPTURE(c.name);
    const Run run = make_run(c, 0);
    std::vector<Reference> references;
    for (const Variable& variable : run.variables)
      references.push_back({variable.shape(), values_of(variable.data()), {}});
    for (int t = 1; t <= kSteps; ++t) {
      set_gradients(run, t, DType::f32);
      run.stepper->step(0.5);
      for (std::size_t i = 0; i < references.size(); ++i) {
        Values g = gradient(i, t);
        for (double& value : g) value *= 0.5;
        c.step(references[i], std::move(g), t);
      }
    }
    for (std::size_t i = 0; i < references.size(); ++i) {
      CAPTURE(shapes()[i]);
      const Values got = values_of(run.variables[i].data());
      double worst = 0;
      for (std::size_t j = 0; j < got.size(); ++j)
        worst = std::max(worst, std::abs(got[j] - references[i].p[j]) / (1e-2 + std::abs(references[i].p[j])));
      CHECK(worst < 2e-5);
    }
    for (const auto& [name, state] : run.stepper->named_states()) {
      CAPTURE(name);
      const std::size_t slash = name.rfind('/');
      const Reference& reference = references[static_cast<std::size_t>(name[1] - '0')];
      REQUIRE(reference.states.contains(name.substr(slash + 1)));
      const Values& want = reference.states.at(name.substr(slash + 1));
      const Values got = values_of(state.tensor);
      REQUIRE(got.size() == want.size());
      double worst = 0;
      for (std::size_t j = 0; j < got.size(); ++j)
        worst = std::max(worst, std::abs(got[j] - want[j]) / (1e-2 + std::abs(want[j])));
      CHECK(worst < 2e-5);
    }
  }
}

TEST_CASE("every optimizer gives the same bits on a parameter cut at block boundaries") {
  for (const OptimizerCase& c : all_cases()) {
    for (const DType gradients : {DType::f32, DType::bf16}) {
      for (const std::int64_t cut : {kBlockElements, 3 * kBlockElements, 1000 * kBlockElements}) {
        CAPTURE(c.name);
        CAPTURE(cut);
        const Run pieces = make_run(c, cut);
        const Run again = make_run(c, 0);
        for (int t = 1; t <= kSteps; ++t) {
          set_gradients(pieces, t, gradients);
          set_gradients(again, t, gradients);
          pieces.stepper->step(0.25);
          again.stepper->step(0.25);
        }
        for (std::size_t i = 0; i < shapes().size(); ++i)
          CHECK(same_bits(pieces.variables[i].data(), again.variables[i].data()));
        const auto states = again.stepper->named_states();
        for (const auto& [name, state] : pieces.stepper->named_states())
          CHECK(same_bits(state.tensor, states.at(name).tensor));
      }
    }
  }
}

TEST_CASE("16-bit weights are trained through f32 masters and are the masters' rounding") {
  for (const OptimizerCase& c : all_cases()) {
    CAPTURE(c.name);
    const Run half = make_run(c, 0, DType::bf16);
    Run full = make_run(c, 0);
    for (std::size_t i = 0; i < shapes().size(); ++i)
      copy_into(cast(half.variables[i].data(), DType::f32), full.variables[i].data());
    for (int t = 1; t <= kSteps; ++t) {
      set_gradients(half, t, DType::bf16);
      set_gradients(full, t, DType::f32);
      half.stepper->step();
      full.stepper->step();
    }
    for (std::size_t i = 0; i < shapes().size(); ++i) {
      CHECK(same_bits(half.variables[i].data(), cast(full.variables[i].data(), DType::bf16)));
      CHECK(same_bits(half.stepper->named_states().at(cat("p", i, "/master")).tensor, full.variables[i].data()));
    }
  }
}

TEST_CASE("an undefined gradient is a zero gradient: decay and moments go on") {
  for (const OptimizerCase& c : all_cases()) {
    CAPTURE(c.name);
    const Run with_zeros = make_run(c, 0), without = make_run(c, 2 * kBlockElements);
    for (int t = 1; t <= 3; ++t) {
      set_gradients(with_zeros, t, DType::f32);
      set_gradients(without, t, DType::f32);
      if (t == 2) {
        with_zeros.variables[0].grad().fill_zero();
        without.variables[0].set_grad({});
      }
      with_zeros.stepper->step();
      without.stepper->step();
    }
    for (std::size_t i = 0; i < shapes().size(); ++i)
      CHECK(same_bits(with_zeros.variables[i].data(), without.variables[i].data()));
  }
}

TEST_CASE("a run goes on from saved states and the step count") {
  const OptimizerCase c = all_cases()[4];
  const Run whole = make_run(c, 0), first = make_run(c, 0), second = make_run(c, kBlockElements);
  for (int t = 1; t <= 4; ++t) {
    for (const Run* run : {&whole, t <= 2 ? &first : &second}) {
      set_gradients(*run, t, DType::f32);
      run->stepper->step();
    }
    if (t != 2) continue;
    for (std::size_t i = 0; i < shapes().size(); ++i) copy_into(first.variables[i].data(), second.variables[i].data());
    const auto states = second.stepper->named_states();
    for (const auto& [name, state] : first.stepper->named_states()) copy_into(state.tensor, states.at(name).tensor);
    second.stepper->set_step_count(first.stepper->step_count());
  }
  for (std::size_t i = 0; i < shapes().size(); ++i)
    CHECK(same_bits(second.variables[i].data(), whole.variables[i].data()));
}

TEST_CASE("masters are taken again from loaded weights when asked for") {
  const OptimizerCase c = all_cases()[0];
  const Run run = make_run(c, 0, DType::bf16);
  const Tensor loaded = tensor(Values(2500, 0.5), {2500}, DType::bf16);
  copy_into(loaded, run.variables[1].data());
  run.stepper->refresh_masters();
  CHECK(values_of(run.stepper->named_states().at("p1/master").tensor) == Values(2500, 0.5));
}

TEST_CASE("a step on meta computes nothing and needs the same states") {
  const Device meta = make_meta({});
  for (const OptimizerCase& c : all_cases()) {
    CAPTURE(c.name);
    const auto optimizer = c.make();
    Variable weight(Tensor::zeros({40, 60}, DType::f32, meta), true), bias(Tensor::zeros({40}, DType::f32, meta), true);
    weight.set_grad(Tensor::zeros({40, 60}, DType::f32, meta));
    Stepper stepper(*optimizer, {{weight, 0}, {bias, 0}});
    stepper.step();
    CHECK(stepper.gradient_norm() == 0);
    for (const auto& [name, state] : stepper.named_states()) CHECK(state.tensor.device() == meta);
  }
}

}  // namespace
}  // namespace castor::autograd
