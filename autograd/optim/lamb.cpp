// Lamb's groups, states and the trust ratio; the arithmetic is core/ops/optim.h's. Delicate: the norm of the direction
// is taken from the states before this step, which `apply` then updates, so a pass may be repeated.
#include "autograd/optim/lamb.h"

#include <cmath>

#include "autograd/optim/optimizer_config.h"
#include "autograd/optim/step_tensors.h"

namespace castor::autograd {
namespace {

constexpr const char* kSquares = "squares";  // of the parameter, of the direction

template <class Config>
std::map<std::string, double, std::less<>> defaults_of(const Config& config) {
  return {{"lr", config.lr},
          {"beta1", config.betas[0]},
          {"beta2", config.betas[1]},
          {"eps", config.eps},
          {"weight_decay", config.weight_decay}};
}

std::vector<StateSpec> moments(const Shape& shape) {
  return {{"exp_avg", shape, DType::f32}, {"exp_avg_sq", shape, DType::f32}};
}

void add_squares(const Range& range, const LambScalars& scalars, Stats& carry) {
  std::vector<double>& sums = carry[kSquares];
  sums.resize(2);
  const LambSquares squares = lamb_squares(step_tensors(range), required_state(range, "exp_avg"),
                                           required_state(range, "exp_avg_sq"), scalars, {sums[0], sums[1]});
  sums = {squares.parameter, squares.update};
}

// 1 where a norm is 0.
double trust_ratio(const Stats& stats) {
  const std::vector<double>& squares = stats.at(kSquares);
  return squares[0] > 0 && squares[1] > 0 ? std::sqrt(squares[0] / squares[1]) : 1;
}

void step(const Range& range, const LambScalars& scalars, double step_size) {
  lamb_step(step_tensors(range), required_state(range, "exp_avg"), required_state(range, "exp_avg_sq"), scalars,
            step_size);
}

}  // namespace

Lamb::Lamb(const LambConfig& config, std::vector<ParamGroup> groups)
    : Optimizer(std::move(groups), defaults_of(config)), config_(checked("Lamb", config)) {}

std::vector<StateSpec> Lamb::states(const Shape& shape) const { return moments(shape); }

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
  add_squares(range, scalars(range, context), carry);
}

void Lamb::apply(const Range& range, const StepContext& context, const Stats& stats) const {
  double step_size = value(range.group, "lr");
  if (config_.bias_correction) {
    const auto t = static_cast<double>(context.step);
    step_size *=
        std::sqrt(1 - std::pow(value(range.group, "beta2"), t)) / (1 - std::pow(value(range.group, "beta1"), t));
  }
  if (!config_.adam) step_size *= trust_ratio(stats);
  step(range, scalars(range, context), step_size);
}

FusedLAMB::FusedLAMB(const FusedLAMBConfig& config, std::vector<ParamGroup> groups)
    : Optimizer(std::move(groups), defaults_of(config)), config_(checked("FusedLAMB", config)) {}

std::vector<StateSpec> FusedLAMB::states(const Shape& shape) const { return moments(shape); }

LambScalars FusedLAMB::scalars(const Range& range, const StepContext& context) const {
  const double beta1 = value(range.group, "beta1"), beta2 = value(range.group, "beta2");
  const double decay = value(range.group, "weight_decay"), norm = context.gradient_norm;
  const auto t = static_cast<double>(context.step);
  const bool is_limited = config_.max_grad_norm > 0 && norm > config_.max_grad_norm;
  LambScalars scalars;
  scalars.gradient_factor =
      static_cast<float>(is_limited ? context.gradient_scale * config_.max_grad_norm / norm : context.gradient_scale);
  scalars.beta1 = static_cast<float>(beta1);
  scalars.beta1_rest = static_cast<float>(config_.grad_averaging ? 1 - beta1 : 1);
  scalars.beta2 = static_cast<float>(beta2);
  scalars.beta2_rest = static_cast<float>(1 - beta2);
  if (config_.bias_correction) {
    scalars.mean_factor = static_cast<float>(1 / (1 - std::pow(beta1, t)));
    scalars.root_factor = static_cast<float>(1 / std::sqrt(1 - std::pow(beta2, t)));
  }
  scalars.epsilon = static_cast<float>(value(range.group, "eps"));
  (config_.adam_w_mode ? scalars.decay : scalars.gradient_decay) = static_cast<float>(decay);
  return scalars;
}

void FusedLAMB::accumulate_stats(int, const Range& range, const StepContext& context, const Stats&,
                                 Stats& carry) const {
  add_squares(range, scalars(range, context), carry);
}

void FusedLAMB::apply(const Range& range, const StepContext& context, const Stats& stats) const {
  const bool is_scaled = config_.use_nvlamb || value(range.group, "weight_decay") != 0;
  step(range, scalars(range, context), value(range.group, "lr") * (is_scaled ? trust_ratio(stats) : 1));
}

}  // namespace castor::autograd
