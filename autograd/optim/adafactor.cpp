// Adafactor's passes: row, column and parameter sums; then, with the moments of this step, the size of the update.
//
// Delicate: a factored parameter's moments are brought up to date between the passes (finish_pass), by every owner
// alike, because the second pass and the update both need those of this step; a vector's second moment is cut and is
// written by the update.
#include "autograd/optim/adafactor.h"

#include <cmath>

#include "autograd/optim/factored_states.h"
#include "autograd/optim/optimizer_config.h"
#include "autograd/optim/step_tensors.h"

namespace castor::autograd {
namespace {

constexpr FactoredNames kFactored{"exp_avg_sq_row", "exp_avg_sq_col"};
constexpr const char* kSecond = "exp_avg_sq";
constexpr const char* kFirst = "exp_avg";

AdafactorMoments moments_of(const Range& range) {
  if (is_factored(range.shape)) return factored_moments(range, kFactored);
  return {{}, {}, required_state(range, kSecond)};
}

std::map<std::string, double, std::less<>> defaults_of(const AdafactorConfig& config) {
  std::map<std::string, double, std::less<>> defaults{{"weight_decay", config.weight_decay}};
  if (config.lr) defaults["lr"] = *config.lr;
  if (config.beta1) defaults["beta1"] = *config.beta1;
  return defaults;
}

}  // namespace

Adafactor::Adafactor(const AdafactorConfig& config, std::vector<ParamGroup> groups)
    : Optimizer(std::move(groups), defaults_of(config)), config_(checked("Adafactor", config)) {}

std::vector<StateSpec> Adafactor::states(const Shape& shape) const {
  std::vector<StateSpec> specs;
  if (is_factored(shape)) {
    add_factored_states(shape, kFactored, specs);
  } else {
    specs.push_back({kSecond, shape, DType::f32});
  }
  if (config_.beta1) specs.push_back({kFirst, shape, DType::f32});
  return specs;
}

double Adafactor::second_decay(const StepContext& context) const {
  return 1 - std::pow(static_cast<double>(context.step), config_.decay_rate);
}

AdafactorScalars Adafactor::scalars(const Range& range, const StepContext& context, const Stats& stats) const {
  const auto t = static_cast<double>(context.step);
  const auto elements = static_cast<double>(range.shape.numel());
  AdafactorScalars scalars;
  scalars.gradient_factor = static_cast<float>(context.gradient_scale);
  scalars.beta2 = static_cast<float>(second_decay(context));
  scalars.epsilon = static_cast<float>(config_.eps[0]);
  if (config_.beta1) scalars.beta1 = static_cast<float>(value(range.group, "beta1"));
  const auto update = stats.find("update_squares");
  if (update == stats.end()) return scalars;

  double step_size = config_.relative_step ? std::min(config_.warmup_init ? 1e-6 * t : 1e-2, 1 / std::sqrt(t))
                                           : value(range.group, "lr");
  if (config_.scale_parameter)
    step_size *= std::max(config_.eps[1], std::sqrt(stats.at("parameter_squares")[0] / elements));
  const double update_size = std::sqrt(update->second[0] / elements);
  scalars.update_factor = static_cast<float>(step_size / std::max(1.0, update_size / config_.clip_threshold));
  scalars.keep = static_cast<float>(1 - step_size * value(range.group, "weight_decay"));
  return scalars;
}

void Adafactor::accumulate_stats(int pass, const Range& range, const StepContext& context, const Stats& finished,
                                 Stats& carry) const {
  const FactoredShape shape = factoring(range.shape);
  if (pass == 1) {
    std::vector<double>& squares = carry["update_squares"];
    squares.resize(1);
    squares[0] = adafactor_update_squares(range.gradient, moments_of(range), shape, range.offset,
                                          scalars(range, context, finished), squares[0]);
    return;
  }
  std::vector<double>& squares = carry["parameter_squares"];
  squares.resize(1);
  if (config_.scale_parameter) squares[0] = sum_squares(range.parameter, squares[0]);
  if (!is_factored(range.shape)) return;
  std::vector<double>&rows = carry["row_squares"], &columns = carry["column_squares"];
  rows.resize(static_cast<std::size_t>(shape.row_count()));
  columns.resize(static_cast<std::size_t>(shape.column_count()));
  adafactor_squares(range.gradient, context.gradient_scale, shape, range.offset, rows, columns);
}

void Adafactor::finish_pass(int pass, const Range& range, const StepContext& context, const Stats& finished) const {
  if (pass != 0 || !is_factored(range.shape)) return;
  update_factored(range, kFactored, finished.at("row_squares"), finished.at("column_squares"), second_decay(context),
                  config_.eps[0]);
}

void Adafactor::apply(const Range& range, const StepContext& context, const Stats& stats) const {
  adafactor_step(step_tensors(range), state_of(range, kFirst), moments_of(range), factoring(range.shape), range.offset,
                 scalars(range, context, stats));
}

}  // namespace castor::autograd
