// Checks of the steps that need nothing but their element.
#include "core/ops/pointwise_steps.h"

#include "core/ops/optim_checks.h"

namespace castor {

using namespace optim_checks;

Cost cost(const AdagradArgs& args) {
  return {8.0 * static_cast<double>(args.parameter.numel()),
          streamed_bytes({&args.gradient, &args.copy}, {&args.parameter, &args.sum})};
}
Cost cost(const LionArgs& args) {
  return {9.0 * static_cast<double>(args.parameter.numel()),
          streamed_bytes({&args.gradient, &args.copy}, {&args.parameter, &args.exp_avg})};
}
Cost cost(const RmspropArgs& args) {
  return {12.0 * static_cast<double>(args.parameter.numel()),
          streamed_bytes({&args.gradient, &args.copy},
                         {&args.parameter, &args.square_avg, &args.momentum_buffer, &args.grad_avg})};
}

void adagrad_step(const StepTensors& tensors, const Tensor& sum, const AdagradScalars& scalars) {
  constexpr const char* kOp = AdagradArgs::kName;
  check_tensors(kOp, tensors);
  check_defined(kOp, "sum", sum);
  check_state(kOp, "sum", sum, tensors.parameter);
  const Device device = common_device(kOp, {&tensors.parameter, &tensors.gradient, &tensors.copy, &sum});
  dispatch(device, AdagradArgs{tensors.parameter.view(), view_or_absent(tensors.gradient), view_or_absent(tensors.copy),
                               sum.view(), scalars});
}

void lion_step(const StepTensors& tensors, const Tensor& exp_avg, const LionScalars& scalars) {
  constexpr const char* kOp = LionArgs::kName;
  check_tensors(kOp, tensors);
  check_defined(kOp, "exp_avg", exp_avg);
  check_state(kOp, "exp_avg", exp_avg, tensors.parameter);
  const Device device = common_device(kOp, {&tensors.parameter, &tensors.gradient, &tensors.copy, &exp_avg});
  dispatch(device, LionArgs{tensors.parameter.view(), view_or_absent(tensors.gradient), view_or_absent(tensors.copy),
                            exp_avg.view(), scalars});
}

void rmsprop_step(const StepTensors& tensors, const Tensor& square_avg, const Tensor& momentum_buffer,
                  const Tensor& grad_avg, const RmspropScalars& scalars) {
  constexpr const char* kOp = RmspropArgs::kName;
  check_tensors(kOp, tensors);
  check_defined(kOp, "square_avg", square_avg);
  check_state(kOp, "square_avg", square_avg, tensors.parameter);
  check_state(kOp, "the momentum buffer", momentum_buffer, tensors.parameter);
  check_state(kOp, "grad_avg", grad_avg, tensors.parameter);
  const Device device = common_device(
      kOp, {&tensors.parameter, &tensors.gradient, &tensors.copy, &square_avg, &momentum_buffer, &grad_avg});
  dispatch(device, RmspropArgs{tensors.parameter.view(), view_or_absent(tensors.gradient), view_or_absent(tensors.copy),
                               square_avg.view(), view_or_absent(momentum_buffer), view_or_absent(grad_avg), scalars});
}

}  // namespace castor
