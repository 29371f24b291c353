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

/// The factor of gradients that a step's scalars have; device_scale multiplies it where there is one.
inline double gradient_factor(const StepContext& context, bool climbs) {
  const double factor = context.device_scale.defined() ? 1 : context.gradient_scale;
  return climbs ? -factor : factor;
}

inline constexpr const char* kMomentumBuffer = "momentum_buffer";

/// The state of that name, or an undefined tensor where `momentum` is 0. Throws ConfigError when a run that started
/// without momentum, and so without the state, has some now.
inline Tensor momentum_buffer(const Optimizer& optimizer, const Range& range, float momentum) {
  if (momentum == 0) return {};
  const Tensor buffer = state_of(range, kMomentumBuffer);
  if (!buffer.defined()) {
    throw ConfigError(
        cat(optimizer.type_name(), ": momentum became ", momentum, " in a run that started without any, so '",
            *range.name, "' has no momentum_buffer; start with a momentum that is not 0"),
        "momentum");
  }
  return buffer;
}

}  // namespace castor::autograd
