// Lamb's groups, states and the trust ratio; the arithmetic is core/ops/optim.h's. Delicate: the norm of the direction
// is taken from the states before this step, which `apply` then updates, so a pass may be repeated.
#include "autograd/optim/lamb.h"

#include <cmath>

#include "autograd/optim/optimizer_config.h"
#include "autograd/optim/step_tensors.h"

namespace castor::autograd {
namespace {
constexpr const char* kSquares = "squares";  // of the parameter, of the direction
}

Lamb::Lamb(const LambConfig& config, std::vector<ParamGroup> groups)
    : Optimizer(std::move(groups), {{"lr", config.lr},
                                    {"beta1", config.betas[0]},
                                    {"beta2", config.betas[1]},
                                    {"eps", config.eps},
                                    {"weight_decay", config.weight_decay}}),
      config_(checked("Lamb", config)) {}

std::vector<StateSpec> Lamb::states(const Shape& shape) const {
  return {{"exp_avg", shape, DType::f32}, {"exp_avg_sq", shape, DType::f32}};
}

LambScalars Lamb::scalars(const Range& range, const StepContext& context) const {
  const double beta1 = value(range.group, "beta1"), beta2 = value(range.group, "beta2");
  LambScalars scalars;
  scalars.gradient_factor = static_cast<float>(context.gradient_scale);
  scalars.beta1 = static_cast<float>(beta1);
  scalars.beta1_rest = static_cast<float>(1 - beta1);
  scalars.beta2 = static_cast<float>(beta2);
  scalars.beta2_rest = static_cast<float>(1 - beta2);
  scalars.epsilon = static_cast<float>(value(range.group, "eps"));
  scalars.decay = static_cast<float>(value(range.group, "weight_decay"));
  return scalars;
}

void Lamb::accumulate_stats(int, const Range& range, const StepContext& context, const Stats&, Stats& carry) const {
  std::vector<double>& sums = carry[kSquares];
  sums.resize(2);
  const LambSquares squares =
      lamb_squares(step_tensors(range), required_state(range, "exp_avg"), required_state(range, "exp_avg_sq"),
                   scalars(range, context), {sums[0], sums[1]});
  sums = {squares.parameter, squares.update};
}

void Lamb::apply(const Range& range, const StepContext& context, const Stats& stats) const {
  double step_size = value(range.group, "lr");
  if (config_.bias_correction) {
    const auto t = static_cast<double>(context.step);
    step_size *=
        std::sqrt(1 - std::pow(value(range.group, "beta2"), t)) / (1 - std::pow(value(range.group, "beta1"), t));
  }
  const std::vector<double>& squares = stats.at(kSquares);
  if (!config_.adam && squares[0] > 0 && squares[1] > 0) step_size *= std::sqrt(squares[0] / squares[1]);
  lamb_step(step_tensors(range), required_state(range, "exp_avg"), required_state(range, "exp_avg_sq"),
            scalars(range, context), step_size);
}

}  // namespace castor::autograd
