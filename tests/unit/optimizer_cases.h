// Every optimizer with options, and the same step as a naive computation in f64: the table that optimizer_test.cpp
// runs.
#pragma once

#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "autograd/optim/optimizer.h"

namespace castor::autograd::test {

using Values = std::vector<double>;

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

inline double sum_of_squares(const Values& values) {
  double sum = 0;
  for (const double value : values) sum += value * value;
  return sum;
}
inline double root_mean_square(const Values& values) {
  return std::sqrt(sum_of_squares(values) / static_cast<double>(values.size()));
}

template <class O, class Config>
OptimizerCase row(std::string name, const Config& config, ReferenceStep step) {
  return {std::move(name), [config] { return std::make_unique<O>(config); }, std::move(step)};
}

/// SGD, Adam, AdamW, Lamb and Adafactor.
void add_first_cases(std::vector<OptimizerCase>& cases);
/// What the peers have beside those.
void add_peers_cases(std::vector<OptimizerCase>& cases);

inline std::vector<OptimizerCase> all_cases() {
  std::vector<OptimizerCase> cases;
  add_first_cases(cases);
  add_peers_cases(cases);
  return cases;
}

}  // namespace castor::autograd::test
