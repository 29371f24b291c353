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

#include "autograd/optim/adafactor.h"
#include "autograd/optim/adam.h"
#include "autograd/optim/lamb.h"
#include "autograd/optim/sgd.h"
#include "autograd/optim/stepper.h"
#include "core/base/error.h"
#include "core/base/philox.h"
#include "core/ops/cast.h"

namespace castor::autograd {
namespace {

using Values = std::vector<double>;

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

/// One parameter of the reference: f64 weights, and states by name.
struct Reference {
  Shape shape;
  Values p;
  std::map<std::string, Values> states;
};
/// One step of one parameter, t from 1.
using ReferenceStep = std::function<void(Reference&, Values g, int t)>;

struct OptimizerCase {
  std::string name;
  std::function<std::unique_ptr<Optimizer>()> make;
  ReferenceStep step;
};

double sum_of_squares(const Values& values) {
  double sum = 0;
  for (const double value : values) sum += value * value;
  return sum;
}
double root_mean_square(const Values& values) {
  return std::sqrt(sum_of_squares(values) / static_cast<double>(values.size()));
}

ReferenceStep sgd_step(SGDConfig c) {
  return [c](Reference& r, Values g, int t) {
    Values& m = r.states["momentum_buffer"];
    m.resize(g.size());
    for (std::size_t i = 0; i < g.size(); ++i) {
      double d = (c.maximize ? -g[i] : g[i]) + c.weight_decay * r.p[i];
      if (c.momentum != 0) {
        m[i] = t == 1 ? d : c.momentum * m[i] + (1 - c.dampening) * d;
        d = c.nesterov ? d + c.momentum * m[i] : m[i];
      }
      r.p[i] -= c.lr * d;
    }
  };
}

ReferenceStep adam_step(AdamConfig c, bool decoupled) {
  return [=](Reference& r, Values g, int t) {
    Values &m = r.states["exp_avg"], &v = r.states["exp_avg_sq"], &largest = r.states["max_exp_avg_sq"];
    m.resize(g.size());
    v.resize(g.size());
    largest.resize(g.size());
    const double correction1 = 1 - std::pow(c.betas[0], t), correction2 = 1 - std::pow(c.betas[1], t);
    for (std::size_t i = 0; i < g.size(); ++i) {
      double d = c.maximize ? -g[i] : g[i];
      if (decoupled) r.p[i] *= 1 - c.lr * c.weight_decay;
      if (!decoupled) d += c.weight_decay * r.p[i];
      m[i] = c.betas[0] * m[i] + (1 - c.betas[0]) * d;
      v[i] = c.betas[1] * v[i] + (1 - c.betas[1]) * d * d;
      largest[i] = std::max(largest[i], v[i]);
      const double second = c.amsgrad ? largest[i] : v[i];
      r.p[i] -= c.lr / correction1 * m[i] / (std::sqrt(second / correction2) + c.eps);
    }
  };
}

ReferenceStep lamb_step(LambConfig c) {
  return [c](Reference& r, Values g, int t) {
    Values &m = r.states["exp_avg"], &v = r.states["exp_avg_sq"];
    m.resize(g.size());
    v.resize(g.size());
    Values u(g.size());
    for (std::size_t i = 0; i < g.size(); ++i) {
      m[i] = c.betas[0] * m[i] + (1 - c.betas[0]) * g[i];
      v[i] = c.betas[1] * v[i] + (1 - c.betas[1]) * g[i] * g[i];
      u[i] = m[i] / (std::sqrt(v[i]) + c.eps) + c.weight_decay * r.p[i];
    }
    double lr = c.lr;
    if (c.bias_correction) lr *= std::sqrt(1 - std::pow(c.betas[1], t)) / (1 - std::pow(c.betas[0], t));
    const double p_norm = std::sqrt(sum_of_squares(r.p)), u_norm = std::sqrt(sum_of_squares(u));
    const double ratio = c.adam || p_norm == 0 || u_norm == 0 ? 1 : p_norm / u_norm;
    for (std::size_t i = 0; i < g.size(); ++i) r.p[i] -= lr * ratio * u[i];
  };
}

ReferenceStep adafactor_step(AdafactorConfig c) {
  return [c](Reference& r, Values g, int t) {
    const bool is_factored = r.shape.ndim() >= 2;
    const auto columns = static_cast<std::size_t>(is_factored ? r.shape.back() : 1);
    const auto rows = static_cast<std::size_t>(is_factored ? r.shape[r.shape.ndim() - 2] : 1);
    const std::size_t matrices = g.size() / (rows * columns);
    double rate = c.lr.value_or(0);
    if (c.relative_step) rate = std::min(c.warmup_init ? 1e-6 * t : 1e-2, 1 / std::sqrt(static_cast<double>(t)));
    if (c.scale_parameter) rate *= std::max(c.eps[1], root_mean_square(r.p));
    const double beta2 = 1 - std::pow(t, c.decay_rate);
    Values u(g.size());
    if (is_factored) {
      Values &row = r.states["exp_avg_sq_row"], &column = r.states["exp_avg_sq_col"];
      row.resize(matrices * rows);
      column.resize(matrices * columns);
      for (std::size_t b = 0; b < matrices; ++b) {
        Values row_mean(rows), column_mean(columns);
        for (std::size_t i = 0; i < rows; ++i) {
          for (std::size_t j = 0; j < columns; ++j) {
            const double x = g[(b * rows + i) * columns + j];
            row_mean[i] += (x * x + c.eps[0]) / static_cast<double>(columns);
            column_mean[j] += (x * x + c.eps[0]) / static_cast<double>(rows);
          }
        }
        double all = 0;
        for (std::size_t i = 0; i < rows; ++i) {
          double& state = row[b * rows + i];
          state = beta2 * state + (1 - beta2) * row_mean[i];
          all += state / static_cast<double>(rows);
        }
        for (std::size_t j = 0; j < columns; ++j) {
          double& state = column[b * columns + j];
          state = beta2 * state + (1 - beta2) * column_mean[j];
        }
        for (std::size_t i = 0; i < rows; ++i) {
          for (std::size_t j = 0; j < columns; ++j) {
            const std::size_t at = (b * rows + i) * columns + j;
            u[at] = g[at] / std::sqrt(row[b * rows + i] / all) / std::sqrt(column[b * columns + j]);
          }
        }
      }
    } else {
      Values& v = r.states["exp_avg_sq"];
      v.resize(g.size());
      for (std::size_t i = 0; i < g.size(); ++i) {
        v[i] = beta2 * v[i] + (1 - beta2) * (g[i] * g[i] + c.eps[0]);
        u[i] = g[i] / std::sqrt(v[i]);
      }
    }
    const double shrink = std::max(1.0, root_mean_square(u) / c.clip_threshold);
    Values& m = r.states["exp_avg"];
    m.resize(g.size());
    for (std::size_t i = 0; i < g.size(); ++i) {
      double update = rate * u[i] / shrink;
      if (c.beta1) update = m[i] = *c.beta1 * m[i] + (1 - *c.beta1) * update;
      r.p[i] -= c.weight_decay * rate * r.p[i];
      r.p[i] -= update;
    }
  };
}

template <class O, class Config>
OptimizerCase row(std::string name, const Config& config, ReferenceStep step) {
  return {std::move(name), [config] { return std::make_unique<O>(config); }, std::move(step)};
}

std::vector<OptimizerCase> all_cases() {
  std::vector<OptimizerCase> cases;
  const auto sgd = [&](const std::string& name, const std::function<void(SGDConfig&)>& set) {
    SGDConfig c;
    c.lr = 0.1;
    set(c);
    cases.push_back(row<SGD>("SGD " + name, c, sgd_step(c)));
  };
  sgd("plain", [](SGDConfig&) {});
  sgd("decay", [](SGDConfig& c) { c.weight_decay = 0.1; });
  sgd("momentum, dampening, decay", [](SGDConfig& c) { c.momentum = 0.9, c.dampening = 0.3, c.weight_decay = 0.01; });
  sgd("nesterov, maximize", [](SGDConfig& c) { c.momentum = 0.8, c.nesterov = true, c.maximize = true; });

  AdamConfig adam;
  adam.lr = 0.01;
  cases.push_back(row<Adam>("Adam", adam, adam_step(adam, false)));
  adam.weight_decay = 0.1;
  adam.betas = {0.8, 0.95};
  adam.amsgrad = true;
  cases.push_back(row<Adam>("Adam decay, amsgrad", adam, adam_step(adam, false)));
  AdamWConfig adamw;
  adamw.lr = 0.01;
  cases.push_back(row<AdamW>("AdamW", adamw, adam_step(adamw, true)));
  adamw.maximize = true;
  adamw.weight_decay = 0.3;
  cases.push_back(row<AdamW>("AdamW maximize", adamw, adam_step(adamw, true)));

  LambConfig lamb;
  lamb.lr = 0.01;
  cases.push_back(row<Lamb>("Lamb", lamb, lamb_step(lamb)));
  lamb.weight_decay = 0.1;
  lamb.bias_correction = true;
  cases.push_back(row<Lamb>("Lamb decay, bias correction", lamb, lamb_step(lamb)));
  lamb.adam = true;
  cases.push_back(row<Lamb>("Lamb adam", lamb, lamb_step(lamb)));

  AdafactorConfig adafactor;
  cases.push_back(row<Adafactor>("Adafactor", adafactor, adafactor_step(adafactor)));
  adafactor.warmup_init = true;
  adafactor.weight_decay = 0.1;
  cases.push_back(row<Adafactor>("Adafactor warm-up, decay", adafactor, adafactor_step(adafactor)));
  adafactor = {};
  adafactor.lr = 0.05;
  adafactor.relative_step = false;
  adafactor.scale_parameter = false;
  adafactor.beta1 = 0.9;
  adafactor.clip_threshold = 0.5;
  cases.push_back(row<Adafactor>("Adafactor beta1, clipped", adafactor, adafactor_step(adafactor)));
  return cases;
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
    variable.set_name("p" + std::to_string(i));
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
      CHECK(same_bits(half.stepper->named_states().at("p" + std::to_string(i) + "/master").tensor,
                      full.variables[i].data()));
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
