// The optimizer's arithmetic for one element, in explicit fused steps: what the kernels of every device compute, so
// that they give the same bits.
#pragma once

#include "core/base/math.h"
#include "core/ops/came.h"
#include "core/ops/optim.h"

namespace castor::optim {

/// How much of gradients of this norm a limit leaves; see NormLimitArgs.
CASTOR_HOST_DEVICE double share_within(double norm, double max_norm) {
  const double share = max_norm / (norm + 1e-6);
  return share > 1 ? 1 : share;
}
CASTOR_HOST_DEVICE double norm_limit(double squares, double scale, double max_norm) {
  return 1 / scale * share_within(std::sqrt(squares) / scale, max_norm);
}

/// `s` for gradients that `factor` multiplies too; null: as they are. In f64, and rounded once.
template <class Scalars>
CASTOR_HOST_DEVICE Scalars with_factor(Scalars s, const double* factor) {
  if (factor != nullptr) s.gradient_factor = static_cast<float>(static_cast<double>(s.gradient_factor) * *factor);
  return s;
}
/// The same for what lies at `place`, if that is not null.
template <class Scalars>
CASTOR_HOST_DEVICE Scalars with_factor(const Scalars& s, const Scalars* place, const double* factor) {
  return with_factor(place != nullptr ? *place : s, factor);
}

/// New moments, parameter and, for amsgrad, the largest second moment.
struct AdamElement {
  float mean, square, largest, parameter;
};
/// One element of an Adam step; see AdamArgs.
///   keeps_largest  amsgrad; `largest` is ignored otherwise
CASTOR_HOST_DEVICE AdamElement adam_element(const AdamScalars& s, float g, float p, float mean, float square,
                                            float largest, bool keeps_largest) {
  const float gradient = math::fma(s.decay, p, s.gradient_factor * g);
  const float m = math::fma(s.beta1, mean, s.beta1_rest * gradient);
  const float v = math::fma(s.beta2, square, (s.beta2_rest * gradient) * gradient);
  const float most = keeps_largest && largest > v ? largest : v;
  const float size = math::fma(math::sqrt(most), s.root_factor, s.epsilon);
  return {m, v, most, math::fma(-s.step_size, m / size, s.keep * p)};
}

/// x within [-limit, limit]; NaN stays.
CASTOR_HOST_DEVICE float limited(float x, float limit) {
  const float low = x < -limit ? -limit : x;
  return low > limit ? limit : low;
}

/// New momentum and parameter.
struct SgdElement {
  float momentum, parameter;
};
/// One element of an SGD step; see SgdArgs. `momentum` is ignored without a buffer.
CASTOR_HOST_DEVICE SgdElement sgd_element(const SgdScalars& s, float g, float p, float momentum, bool has_buffer) {
  const float gradient = limited(math::fma(s.weight_decay, p, s.gradient_factor * g), s.limit);
  const float kept = s.is_first_step ? gradient : math::fma(s.momentum, momentum, (1.0f - s.dampening) * gradient);
  const float step = !has_buffer ? gradient : s.is_nesterov ? math::fma(s.momentum, kept, gradient) : kept;
  return {kept, math::fma(-s.lr, math::fma(s.late_decay, p, step), p)};
}

/// Lamb's direction and new moments of one element.
struct LambElement {
  float mean, square, update;
};
CASTOR_HOST_DEVICE LambElement lamb_element(const LambScalars& s, float g, float p, float m, float v) {
  const float gradient = math::fma(s.gradient_decay, p, s.gradient_factor * g);
  const float mean = math::fma(s.beta1, m, s.beta1_rest * gradient);
  const float square = math::fma(s.beta2, v, (s.beta2_rest * gradient) * gradient);
  const float size = math::fma(math::sqrt(square), s.root_factor, s.epsilon);
  return {mean, square, math::fma(s.decay, p, (mean * s.mean_factor) / size)};
}

/// Adafactor's second moment of an element with a moment of its own.
CASTOR_HOST_DEVICE float second_moment(const AdafactorScalars& s, float g, float v) {
  const float gradient = s.gradient_factor * g;
  return math::fma(s.beta2, v, (1.0f - s.beta2) * math::fma(gradient, gradient, s.epsilon));
}

/// The running mean of update directions after an element's, and what the direction is off it.
struct CameElement {
  float mean, residual;
};
/// One element of CAME; `direction` is Adafactor's.
CASTOR_HOST_DEVICE CameElement came_element(const CameScalars& s, float direction, float mean) {
  const float update = s.update_factor * direction;
  const float kept = math::fma(s.beta1, mean, (1.0f - s.beta1) * update);
  return {kept, update - kept};
}

}  // namespace castor::optim
