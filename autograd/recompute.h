// Activation checkpointing: a segment's forward keeps only its inputs and is run again in backward. Results are
// bit-equal to the plain run, because random numbers are replayed and kernels are deterministic.
//
// Source: Chen et al. 2016, "Training deep nets with sublinear memory cost", arXiv:1604.06174.
#pragma once

#include <functional>
#include <vector>

#include "autograd/variable.h"

namespace castor::autograd {

/// A stretch of forward code, a function of `inputs` and of the parameters it uses.
using Segment = std::function<std::vector<Variable>(const std::vector<Variable>& inputs)>;

/// segment(inputs), without keeping what happens inside. Every random draw must go through `random_state()`.
std::vector<Variable> recompute(const Segment& segment, const std::vector<Variable>& inputs);

/// The same for one input and one result.
Variable recompute(const std::function<Variable(const Variable&)>& segment, const Variable& input);

/// True while a segment runs again in backward: side effects of forward (running statistics, logging) must not happen
/// twice.
bool is_recomputing();

}  // namespace castor::autograd
