// CAME's passes: row and column sums of squared gradients; the update's size; row and column sums of squared residuals.
//
// Delicate: factored moments are brought up to date between the passes, by every owner alike, because what follows
// needs those of this step; the running mean and a vector's second moment are cut and are written by the update.
#include "autograd/optim/came.h"

#include <cmath>

#include "autograd/optim/factored_states.h"
#include "autograd/optim/optimizer_config.h"
#include "autograd/optim/step_tensors.h"

namespace castor::autograd {
namespace {

constexpr const char* kMean = "exp_avg";
constexpr FactoredNames kSquares{"exp_avg_sq_row", "exp_avg_sq_col"};
constexpr FactoredNames kResiduals{"exp_avg_res_row", "exp_avg_res_col"};
constexpr const char* kSecond = "exp_avg_sq";

std::map<std::string, double, std::less<>> defaults_of(const CAMEConfig& config) {
  checked("CAME", config);
  return {{"lr", *config.lr},
          {"beta1", config.betas[0]},
          {"beta2", config.betas[1]},
          {"beta3", config.betas[2]},
          {"weight_decay", config.weight_decay}};
}

AdafactorMoments moments_of(const Range& range) {
  if (is_factored(range.shape)) return factored_moments(range, kSquares);
  return {{}, {}, required_state(range, kSecond)};
}

}  // namespace

CAME::CAME(const CAMEConfig& config, std::vector<ParamGroup> groups)
    : Optimizer(std::move(groups), defaults_of(config)), config_(config) {}

std::vector<StateSpec> CAME::states(const Shape& shape) const {
  std::vector<StateSpec> specs;
  if (is_factored(shape)) {
    add_factored_states(shape, kSquares, specs);
    add_factored_states(shape, kResiduals, specs);
  } else {
    specs.push_back({kSecond, shape, DType::f32});
  }
  specs.push_back({kMean, shape, DType::f32});
  return specs;
}

CameScalars CAME::scalars(const Range& range, const StepContext& context, const Stats& stats) const {
  const double lr = value(range.group, "lr");
  CameScalars scalars;
  scalars.gradient_factor = static_cast<float>(context.gradient_scale);
  scalars.beta1 = static_cast<float>(value(range.group, "beta1"));
  scalars.beta2 = static_cast<float>(value(range.group, "beta2"));
  scalars.epsilon = static_cast<float>(config_.eps[0]);
  scalars.lr = static_cast<float>(lr);
  scalars.keep = static_cast<float>(1 - lr * value(range.group, "weight_decay"));
  if (const auto squares = stats.find("update_squares"); squares != stats.end()) {
    const double size = std::sqrt(squares->second[0] / static_cast<double>(range.shape.numel()));
    scalars.update_factor = static_cast<float>(1 / std::max(1.0, size / config_.clip_threshold));
  }
  return scalars;
}

void CAME::accumulate_stats(int pass, const Range& range, const StepContext& context, const Stats& finished,
                            Stats& carry) const {
  const FactoredShape shape = factoring(range.shape);
  const CameScalars scalars = this->scalars(range, context, finished);
  if (pass == 1) {
    std::vector<double>& squares = carry["update_squares"];
    squares.resize(1);
    squares[0] = adafactor_update_squares(range.gradient, moments_of(range), shape, range.offset, scalars, squares[0]);
    return;
  }
  if (!is_factored(range.shape)) return;
  std::vector<double>&rows = carry[pass == 0 ? "row_squares" : "row_residuals"],
  &columns = carry[pass == 0 ? "column_squares" : "column_residuals"];
  rows.resize(static_cast<std::size_t>(shape.row_count()));
  columns.resize(static_cast<std::size_t>(shape.column_count()));
  if (pass == 0) {
    adafactor_squares(range.gradient, context.gradient_scale, shape, range.offset, rows, columns);
  } else {
    came_residuals(range.gradient, required_state(range, kMean), moments_of(range), shape, range.offset, scalars, rows,
                   columns);
  }
}

void CAME::finish_pass(int pass, const Range& range, const StepContext&, const Stats& finished) const {
  if (!is_factored(range.shape)) return;
  if (pass == 0) {
    update_factored(range, kSquares, finished.at("row_squares"), finished.at("column_squares"),
                    value(range.group, "beta2"), config_.eps[0]);
  } else if (pass == 2) {
    update_factored(range, kResiduals, finished.at("row_residuals"), finished.at("column_residuals"),
                    value(range.group, "beta3"), config_.eps[1]);
  }
}

void CAME::apply(const Range& range, const StepContext& context, const Stats& stats) const {
  const AdafactorMoments residuals =
      is_factored(range.shape) ? factored_moments(range, kResiduals) : AdafactorMoments{};
  came_step(step_tensors(range), required_state(range, kMean), moments_of(range), residuals, factoring(range.shape),
            range.offset, scalars(range, context, stats));
}

}  // namespace castor::autograd
