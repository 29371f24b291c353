// Steps of optimizers that need nothing but their element: Adagrad, Lion and RMSprop. Each is one functor
// (pointwise_steps_element.h) over the walks of optim_stretch.h and optim_cuda.cuh; what those promise holds here.
//
// To add one: scalars, Args and a step function here, the functor, and a line in each of the two kernel files.
#pragma once

#include "core/ops/optim.h"

namespace castor {

/// Numbers of one Adagrad step.
struct AdagradScalars {
  float gradient_factor = 1;
  float step_size = 1e-2f;  ///< lr / (1 + (t - 1) lr_decay)
  float decay = 0, epsilon = 1e-10f;
};

/// g = gradient_factor * gradient + decay p; sum += g^2; p -= step_size g / (sqrt(sum) + epsilon).
struct AdagradArgs {
  static constexpr const char* kName = "adagrad";
  View parameter, gradient, copy, sum;
  AdagradScalars scalars;
};
Cost cost(const AdagradArgs& args);
void run(const Cpu& cpu, const AdagradArgs& args);
void run(const Cuda& cuda, const AdagradArgs& args);

/// One Adagrad step on a range; `sum` f32 [count]. Errors as adam_step.
void adagrad_step(const StepTensors& tensors, const Tensor& sum, const AdagradScalars& scalars);

/// Numbers of one Lion step; *_rest = 1 - *.
struct LionScalars {
  float gradient_factor = 1, beta1 = 0.9f, beta1_rest = 0.1f, beta2 = 0.99f, beta2_rest = 0.01f;
  float lr = 1e-4f, keep = 1;  ///< keep = 1 - lr times the decay
};

/// g = gradient_factor * gradient; p = keep p - lr sign(beta1 m + (1 - beta1) g), the sign of 0 being 0; then
/// m = beta2 m + (1 - beta2) g.
struct LionArgs {
  static constexpr const char* kName = "lion";
  View parameter, gradient, copy, exp_avg;
  LionScalars scalars;
};
Cost cost(const LionArgs& args);
void run(const Cpu& cpu, const LionArgs& args);
void run(const Cuda& cuda, const LionArgs& args);

/// One Lion step on a range; `exp_avg` f32 [count]. Errors as adam_step.
void lion_step(const StepTensors& tensors, const Tensor& exp_avg, const LionScalars& scalars);

/// Numbers of one RMSprop step; alpha_rest = 1 - alpha.
struct RmspropScalars {
  float gradient_factor = 1, lr = 1e-2f, alpha = 0.99f, alpha_rest = 0.01f;
  float momentum = 0, decay = 0, epsilon = 1e-8f;
};

/// g = gradient_factor * gradient + decay p; v = alpha v + (1 - alpha) g^2; with a grad_avg a = alpha a + (1 - alpha) g
/// and v - a^2 in place of v; u = g / (sqrt(v) + epsilon), or with a momentum buffer b = momentum b + that and u = b;
/// p -= lr u.
struct RmspropArgs {
  static constexpr const char* kName = "rmsprop";
  View parameter, gradient, copy, square_avg, momentum_buffer, grad_avg;
  RmspropScalars scalars;
};
Cost cost(const RmspropArgs& args);
void run(const Cpu& cpu, const RmspropArgs& args);
void run(const Cuda& cuda, const RmspropArgs& args);

/// One RMSprop step on a range; states f32 [count], of which momentum_buffer and grad_avg may be undefined. Errors as
/// adam_step.
void rmsprop_step(const StepTensors& tensors, const Tensor& square_avg, const Tensor& momentum_buffer,
                  const Tensor& grad_avg, const RmspropScalars& scalars);

}  // namespace castor
