// Lars' groups, states and ratio; the step is SGD's with the ratio in its learning rate.
#include "autograd/optim/lars.h"

#include <algorithm>
#include <cmath>

#include "autograd/optim/optimizer_config.h"
#include "autograd/optim/step_tensors.h"

namespace castor::autograd {
namespace {

constexpr const char* kSquares = "squares";  // of the parameter, of the gradient as it came
constexpr double kLargestRatio = 50;
constexpr float kGradientLimit = 10;

}  // namespace

Lars::Lars(const LarsConfig& config, std::vector<ParamGroup> groups)
    : Optimizer(std::move(groups), {{"lr", config.lr},
                                    {"momentum", config.momentum},
                                    {"eeta", config.eeta},
                                    {"weight_decay", config.weight_decay},
                                    {"epsilon", config.epsilon}}) {
  checked("Lars", config);
}

std::vector<StateSpec> Lars::states(const Shape& shape) const {
  if (!any_nonzero("momentum")) return {};
  return {{kMomentumBuffer, shape, DType::f32}};
}

void Lars::accumulate_stats(int, const Range& range, const StepContext&, const Stats&, Stats& carry) const {
  std::vector<double>& sums = carry[kSquares];
  sums.resize(2);
  sums[0] = sum_squares(range.parameter, sums[0]);
  if (range.gradient.defined()) sums[1] = sum_squares(range.gradient, sums[1]);
}

void Lars::apply(const Range& range, const StepContext& context, const Stats& stats) const {
  const std::vector<double>& squares = stats.at(kSquares);
  const double decay = value(range.group, "weight_decay");
  const double length = std::sqrt(squares[0]), slope = std::sqrt(squares[1]) * context.gradient_scale;
  double ratio = 1;
  if (length > 0 && slope > 0) {
    ratio = std::min(value(range.group, "eeta") * length / (slope + decay * length + value(range.group, "epsilon")),
                     kLargestRatio);
  }
  SgdScalars scalars;
  scalars.gradient_factor = static_cast<float>(context.gradient_scale);
  scalars.lr = static_cast<float>(value(range.group, "lr") * ratio);
  scalars.momentum = static_cast<float>(value(range.group, "momentum"));
  scalars.weight_decay = static_cast<float>(decay);
  scalars.is_first_step = context.step == 1;
  scalars.limit = kGradientLimit;
  sgd_step(step_tensors(range), momentum_buffer(*this, range, scalars.momentum), scalars);
}

}  // namespace castor::autograd
