// Gradient clipping. A step multiplies every gradient by one factor anyway (StepContext::gradient_scale), so clipping
// by norm costs no pass of its own: take the norm, ask for the factor, pass it on. The functions that write gradients
// are for loops without a stepper.
#pragma once

#include <vector>

#include "autograd/variable.h"

namespace castor::autograd {

/// min(1, max_norm / (norm + 1e-6)): PyTorch's clip coefficient. NaN for a norm of NaN; 0 for an infinite one.
double clip_factor(double norm, double max_norm);

/// The norm of all gradients as one vector: the root of the sum of squares over fixed blocks in parameter order for
/// norm_type 2, the largest magnitude for infinity (HUGE_VAL). Undefined gradients are zeros. 0 on meta. Throws
/// ConfigError for another norm_type.
double total_gradient_norm(const std::vector<Variable>& parameters, double norm_type = 2);

/// Multiplies the gradients by clip_factor of their norm, which it returns. PyTorch's clip_grad_norm_.
///   error_if_nonfinite  throw Error, leaving the gradients, when the norm is infinite or NaN
double clip_grad_norm(const std::vector<Variable>& parameters, double max_norm, double norm_type = 2,
                      bool error_if_nonfinite = false);

/// Limits each element of the gradients to [-clip_value, clip_value]. PyTorch's clip_grad_value_.
void clip_grad_value(const std::vector<Variable>& parameters, double clip_value);

}  // namespace castor::autograd
