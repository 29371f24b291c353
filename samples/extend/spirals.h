// A user's own data set: points on arms of a spiral, the class is the arm. Nothing is stored: a sample is a function of
// its number, drawn from counter-based random numbers.
#pragma once

#include <cstdint>

#include "strategy/config/field.h"
#include "strategy/data/dataset.h"

namespace extend {

/// Options of Spirals.
struct SpiralsConfig {
  std::int64_t samples = 3000;
  std::int64_t arms = 3;
  double turns = 1.0;
  double noise = 0.1;
  std::int64_t seed = 0;
};

/// Names every option once.
template <class V>
void describe(V& v, SpiralsConfig& c) {
  v.field("samples", c.samples, "points in all", castor::strategy::at_least(1));
  v.field("arms", c.arms, "classes", castor::strategy::at_least(2));
  v.field("turns", c.turns, "how often an arm goes round", castor::strategy::more_than(0));
  v.field("noise", c.noise, "largest error of the angle in radians", castor::strategy::at_least(0));
  v.field("seed", c.seed, "of the points; another seed for validation", castor::strategy::at_least(0));
}

/// A batch of n points has inputs f32 [n, 2], each coordinate in -1 .. 1, and targets i64 [n] in 0 .. arms - 1.
class Spirals final : public castor::strategy::Dataset {
 public:
  explicit Spirals(const SpiralsConfig& config) : config_(config) {}
  std::int64_t size() const override { return config_.samples; }
  castor::autograd::Batch batch(std::span<const std::int64_t> samples) const override;

 private:
  SpiralsConfig config_;
};

}  // namespace extend
