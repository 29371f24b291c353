// Norms in a fixed order, so that clipping keeps the first promise.
#include "autograd/optim/clip.h"

#include <algorithm>
#include <cmath>

#include "core/ops/elementwise.h"
#include "core/ops/optim.h"
#include "core/ops/optim_element.h"
#include "core/ops/reduce.h"

namespace castor::autograd {

double clip_factor(double norm, double max_norm) { return optim::share_within(norm, max_norm); }

double total_gradient_norm(const std::vector<Variable>& parameters, double norm_type) {
  if (norm_type != 2 && norm_type != HUGE_VAL)
    throw ConfigError(cat("clip: norm_type must be 2 or infinity, got ", norm_type), "norm_type");
  double total = 0;
  for (const Variable& parameter : parameters) {
    const Tensor& gradient = parameter.grad();
    if (!gradient.defined() || gradient.numel() == 0 || gradient.device().is_meta()) continue;
    if (norm_type == 2) {
      total += sum_squares(gradient);
    } else {
      const double largest = norm(gradient, HUGE_VAL).item();
      total = std::isnan(total) || std::isnan(largest) ? std::nan("") : std::max(total, largest);
    }
  }
  return norm_type == 2 ? std::sqrt(total) : total;
}

double clip_grad_norm(const std::vector<Variable>& parameters, double max_norm, double norm_type,
                      bool error_if_nonfinite) {
  const double norm = total_gradient_norm(parameters, norm_type);
  if (error_if_nonfinite && !std::isfinite(norm)) {
    throw Error(cat("clip_grad_norm: the norm of the gradients is ", norm,
                    "; pass error_if_nonfinite = false to scale by it all the same"));
  }
  const double factor = clip_factor(norm, max_norm);
  if (factor == 1) return norm;
  for (const Variable& parameter : parameters) {
    if (parameter.grad().defined()) unary_inplace(UnaryOp::affine, parameter.grad(), factor, 0);
  }
  return norm;
}

void clip_grad_value(const std::vector<Variable>& parameters, double clip_value) {
  for (const Variable& parameter : parameters) {
    if (parameter.grad().defined()) unary_inplace(UnaryOp::clamp, parameter.grad(), -clip_value, clip_value);
  }
}

}  // namespace castor::autograd
