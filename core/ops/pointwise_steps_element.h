// The arithmetic of pointwise_steps.h for one element, in explicit fused steps, read by both compilers: a functor takes
// the gradient and x, the parameter and its states, and leaves in x what they become.
#pragma once

#include "core/base/math.h"
#include "core/ops/pointwise_steps.h"

namespace castor::optim {

/// x: parameter, sum.
struct AdagradElement {
  static constexpr int kStates = 2;
  AdagradScalars s;
  CASTOR_HOST_DEVICE void operator()(float g, float (&x)[kStates]) const {
    const float gradient = math::fma(s.decay, x[0], s.gradient_factor * g);
    x[1] = math::fma(gradient, gradient, x[1]);
    x[0] = math::fma(-s.step_size, gradient / (math::sqrt(x[1]) + s.epsilon), x[0]);
  }
};

/// x: parameter, exp_avg.
struct LionElement {
  static constexpr int kStates = 2;
  LionScalars s;
  CASTOR_HOST_DEVICE void operator()(float g, float (&x)[kStates]) const {
    const float gradient = s.gradient_factor * g;
    const float direction = math::fma(s.beta1, x[1], s.beta1_rest * gradient);
    // Of NaN the sign is NaN, so that a broken gradient shows.
    const float sign = direction > 0.0f ? 1.0f : direction < 0.0f ? -1.0f : direction;
    x[0] = math::fma(-s.lr, sign, s.keep * x[0]);
    x[1] = math::fma(s.beta2, x[1], s.beta2_rest * gradient);
  }
};

/// x: parameter, square_avg, then momentum_buffer and grad_avg as far as they are there.
template <bool kHasMomentum, bool kIsCentered>
struct RmspropElement {
  static constexpr int kStates = 2 + (kHasMomentum ? 1 : 0) + (kIsCentered ? 1 : 0);
  RmspropScalars s;
  CASTOR_HOST_DEVICE void operator()(float g, float (&x)[kStates]) const {
    const float gradient = math::fma(s.decay, x[0], s.gradient_factor * g);
    x[1] = math::fma(s.alpha, x[1], (s.alpha_rest * gradient) * gradient);
    float square = x[1];
    if constexpr (kIsCentered) {
      float& mean = x[kStates - 1];
      mean = math::fma(s.alpha, mean, s.alpha_rest * gradient);
      const float centered = math::fma(-mean, mean, square);
      square = centered < 0.0f ? 0.0f : centered;
    }
    float update = gradient / (math::sqrt(square) + s.epsilon);
    if constexpr (kHasMomentum) {
      x[2] = math::fma(s.momentum, x[2], update);
      update = x[2];
    }
    x[0] = math::fma(-s.lr, update, x[0]);
  }
};

/// Calls f with the functor for the states that are there, then their views, the parameter's first.
template <class F>
void visit_rmsprop(const RmspropArgs& args, F f) {
  const RmspropScalars& s = args.scalars;
  const bool has_momentum = args.momentum_buffer.defined(), is_centered = args.grad_avg.defined();
  if (has_momentum && is_centered)
    return f(RmspropElement<true, true>{s}, args.parameter, args.square_avg, args.momentum_buffer, args.grad_avg);
  if (has_momentum) return f(RmspropElement<true, false>{s}, args.parameter, args.square_avg, args.momentum_buffer);
  if (is_centered) return f(RmspropElement<false, true>{s}, args.parameter, args.square_avg, args.grad_avg);
  return f(RmspropElement<false, false>{s}, args.parameter, args.square_avg);
}

}  // namespace castor::optim
