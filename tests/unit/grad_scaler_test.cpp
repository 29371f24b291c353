// The moves of the loss scale, against the rules of ColossalAI's DynamicGradScaler.
#include "autograd/optim/grad_scaler.h"

#include <doctest/doctest.h>

namespace castor::autograd {
namespace {

GradScalerConfig quick() {
  GradScalerConfig config;
  config.initial_scale = 16;
  config.growth_interval = 3;
  config.hysteresis = 2;
  config.min_scale = 4;
  config.max_scale = 32;
  return config;
}

TEST_CASE("the scale falls only from the second overflow since its last growth, and never below the smallest") {
  GradScaler scaler(quick());
  scaler.update(true);
  CHECK(scaler.scale() == 16);
  scaler.update(false);
  scaler.update(true);
  CHECK(scaler.scale() == 8);
  scaler.update(true);
  CHECK(scaler.scale() == 4);
  scaler.update(true);
  CHECK(scaler.scale() == 4);
  CHECK(scaler.state().skipped == 4);
  CHECK(scaler.state().skipped_in_row == 3);
}

TEST_CASE("it grows after an interval without overflow, up to the largest, and growth forgives overflows") {
  GradScaler scaler(quick());
  scaler.update(true);
  for (int i = 0; i < 2; ++i) scaler.update(false);
  CHECK(scaler.scale() == 16);
  scaler.update(false);
  CHECK(scaler.scale() == 32);
  CHECK(scaler.state().hysteresis_step == 0);
  for (int i = 0; i < 3; ++i) scaler.update(false);
  CHECK(scaler.scale() == 32);
  CHECK(scaler.state().skipped_in_row == 0);
}

TEST_CASE("a scaler with the state of another goes on like it") {
  GradScaler first(quick()), second(quick());
  first.update(true);
  first.update(false);
  second.set_state(first.state());
  for (int i = 0; i < 2; ++i) {
    first.update(false);
    second.update(false);
  }
  CHECK(first.scale() == 32);
  CHECK(second.scale() == first.scale());
}

}  // namespace
}  // namespace castor::autograd
