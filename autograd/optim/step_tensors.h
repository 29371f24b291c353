// From a Range, which names its states, to the arguments of core's step functions.
#pragma once

#include "autograd/optim/optimizer.h"
#include "core/ops/optim.h"

namespace castor::autograd {

static_assert(kBlockElements == kStatisticsBlock, "the two floors cut tensors alike");

/// The tensors every step takes.
inline StepTensors step_tensors(const Range& range) { return {range.parameter, range.gradient, range.copy}; }

/// A state of the range; undefined when the range has none of this name.
inline Tensor state_of(const Range& range, const char* name) {
  const auto found = range.states.find(name);
  return found == range.states.end() ? Tensor{} : found->second;
}

/// A state the optimizer declared. Throws InternalError naming parameter and state when the range lacks it.
inline const Tensor& required_state(const Range& range, const char* name) {
  const auto found = range.states.find(name);
  if (found == range.states.end())
    throw InternalError(cat("optimizer: '", *range.name, "' came without its state '", name, "'"));
  return found->second;
}

}  // namespace castor::autograd
