// Where a part's bytes lie: for the sources of Stepper.
#pragma once

#include "autograd/optim/stepper.h"

namespace castor::autograd {

/// The state that holds the f32 weights of a part of 16 bits.
inline constexpr const char* kMaster = "master";

inline Tensor flat(const Tensor& x) { return x.reshape({x.numel()}); }

inline Tensor weights_of(const Part& part) {
  return part.weights.defined() ? part.weights : flat(part.variable.data());
}

/// Undefined where there is none.
inline Tensor gradient_of(const Part& part) {
  if (part.gradient.defined()) return part.gradient;
  const Tensor& whole = part.variable.grad();
  return whole.defined() ? flat(whole).narrow(0, part.offset, part.count) : Tensor{};
}

/// Of its states.
inline Device place_of(const Part& part) { return part.states_on.value_or(weights_of(part).device()); }

}  // namespace castor::autograd
