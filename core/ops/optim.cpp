// Checks and scalars of SGD, Adam and Lamb. Scalars are computed in f64 and rounded once here, so that every device
// gets the same ones. Adafactor is in adafactor.cpp.
#include "core/ops/optim.h"

#include <algorithm>
#include <cmath>

#include "core/ops/optim_checks.h"

namespace castor {

using namespace optim_checks;

Cost cost(const BlockSquaresArgs& args) {
  Cost all;
  for (const auto& [x, sums] : args.pairs) {
    all.flops += 2.0 * static_cast<double>(x.numel());
    all.bytes += streamed_bytes({&x, &sums}, {});
  }
  return all;
}
Cost cost(const AdamArgs& args) {
  Cost all;
  for (const AdamArgs::Range& range : args.ranges) {
    all.flops += 14.0 * static_cast<double>(range.parameter.numel());
    all.bytes += streamed_bytes({&range.gradient, &range.copy},
                                {&range.parameter, &range.exp_avg, &range.exp_avg_sq, &range.max_exp_avg_sq});
  }
  return all;
}
Cost cost(const SgdArgs& args) {
  Cost all;
  for (const SgdArgs::Range& range : args.ranges) {
    all.flops += 7.0 * static_cast<double>(range.parameter.numel());
    all.bytes += streamed_bytes({&range.gradient, &range.copy}, {&range.parameter, &range.momentum_buffer});
  }
  return all;
}
Cost cost(const LambSquaresArgs& args) {
  return {18.0 * static_cast<double>(args.parameter.numel()),
          streamed_bytes({&args.parameter, &args.gradient, &args.exp_avg, &args.exp_avg_sq}, {})};
}
Cost cost(const LambArgs& args) {
  return {16.0 * static_cast<double>(args.parameter.numel()),
          streamed_bytes({&args.gradient, &args.copy}, {&args.parameter, &args.exp_avg, &args.exp_avg_sq})};
}
void block_squares(std::span<const BlockSquares> all) {
  constexpr const char* kOp = "sum_squares";
  std::vector<BlockSquaresArgs::Pair> pairs;
  for (const auto& [x, sums] : all) {
    check_gradient_dtype(kOp, x);
    if (!x.is_contiguous())
      throw ShapeError(cat(kOp, ": expected a row-major tensor, got ", x, " with strides ", x.strides()));
    if (sums.numel() != block_count(x.numel()) || sums.dtype() != DType::f64 || !sums.is_contiguous())
      throw ShapeError(cat(kOp, ": ", x, " has ", block_count(x.numel()), " blocks, got ", sums, " for their sums"));
    common_device(kOp, {&all.front().x, &x, &sums});
    if (x.numel() > 0) pairs.push_back({x.view(), sums.view()});
  }
  if (!pairs.empty()) dispatch(all.front().x.device(), BlockSquaresArgs{pairs});
}

double sum_squares(const Tensor& x, double carry) {
  if (x.numel() == 0) return carry;
  const Tensor sums = block_sums_for(x.numel(), x.device());
  const BlockSquares one{x, sums};
  block_squares({&one, 1});
  return add_in_order(sums, carry);
}

Cost cost(const FoldSegmentsArgs& args) {
  return {static_cast<double>(args.values.numel()), streamed_bytes({&args.values, &args.begins, &args.out}, {})};
}

Tensor fold_segments(const Tensor& values, const std::vector<std::int64_t>& begins) {
  constexpr const char* kOp = FoldSegmentsArgs::kName;
  if (values.dtype() != DType::f64) throw DTypeError(cat(kOp, ": expected f64, got ", values));
  if (!values.is_contiguous() || begins.empty() || begins.front() < 0 || begins.back() > values.numel() ||
      !std::is_sorted(begins.begin(), begins.end())) {
    throw ShapeError(cat(kOp, ": ", begins.size(), " begins do not cut ", values, " into segments"));
  }
  return fold_segments(values,
                       Tensor::from_values(begins, {static_cast<std::int64_t>(begins.size())}, values.device()));
}

Tensor fold_segments(const Tensor& values, const Tensor& begins) {
  constexpr const char* kOp = FoldSegmentsArgs::kName;
  if (values.dtype() != DType::f64 || begins.dtype() != DType::i64)
    throw DTypeError(cat(kOp, ": expected values in f64 and begins in i64, got ", values, " and ", begins));
  const Device device = common_device(kOp, {&values, &begins});
  const Tensor out = empty_workspace(begins.numel() - 1, DType::f64, device);
  if (out.numel() > 0) dispatch(device, FoldSegmentsArgs{values.view(), begins.view(), out.view()});
  return out;
}

Cost cost(const NormLimitArgs& args) {
  return {static_cast<double>(args.squares.numel()), streamed_bytes({&args.squares, &args.factor}, {})};
}

Tensor norm_limit(const Tensor& squares, double scale, double max_norm) {
  constexpr const char* kOp = NormLimitArgs::kName;
  if (squares.dtype() != DType::f64) throw DTypeError(cat(kOp, ": expected f64, got ", squares));
  if (!squares.is_contiguous()) {
    throw ShapeError(cat(kOp, ": expected a row-major tensor, got ", squares, " with strides ", squares.strides()));
  }
  const Tensor factor = empty_workspace(1, DType::f64, squares.device());
  dispatch(squares.device(), NormLimitArgs{squares.view(), factor.view(), scale, max_norm});
  return factor;
}

AdamScalars adam_scalars(const AdamOptions& options, std::int64_t step, double gradient_factor) {
  if (step < 1) throw ShapeError(cat("adam_scalars: steps count from 1, got ", step));
  const auto t = static_cast<double>(step);
  const double correction1 = options.is_bias_corrected ? 1 - std::pow(options.beta1, t) : 1;
  const double correction2 = options.is_bias_corrected ? 1 - std::pow(options.beta2, t) : 1;
  const double decoupled = options.is_decoupled ? options.weight_decay : 0,
               l2 = options.is_decoupled ? 0 : options.weight_decay;
  return {static_cast<float>(gradient_factor),
          static_cast<float>(options.beta1),
          static_cast<float>(1 - options.beta1),
          static_cast<float>(options.beta2),
          static_cast<float>(1 - options.beta2),
          static_cast<float>(options.lr / correction1),
          static_cast<float>(1 / std::sqrt(correction2)),
          static_cast<float>(options.epsilon),
          static_cast<float>(1 - options.lr * decoupled),
          static_cast<float>(l2)};
}

void adam_steps(std::span<const AdamStep> steps, const Tensor& factor) {
  constexpr const char* kOp = AdamArgs::kName;
  check_factor(kOp, factor);
  std::vector<AdamArgs::Range> ranges;
  for (const AdamStep& step : steps) {
    const StepTensors& tensors = step.tensors;
    check_tensors(kOp, tensors);
    check_defined(kOp, "exp_avg", step.exp_avg);
    check_defined(kOp, "exp_avg_sq", step.exp_avg_sq);
    check_state(kOp, "exp_avg", step.exp_avg, tensors.parameter);
    check_state(kOp, "exp_avg_sq", step.exp_avg_sq, tensors.parameter);
    check_state(kOp, "max_exp_avg_sq", step.max_exp_avg_sq, tensors.parameter);
    common_device(kOp, {&steps.front().tensors.parameter, &tensors.parameter, &tensors.gradient, &tensors.copy, &factor,
                        &step.exp_avg, &step.exp_avg_sq, &step.max_exp_avg_sq, &step.place});
    check_place(kOp, step.place, sizeof(AdamScalars), alignof(AdamScalars));
    ranges.push_back({tensors.parameter.view(), view_or_absent(tensors.gradient), view_or_absent(tensors.copy),
                      step.exp_avg.view(), step.exp_avg_sq.view(), view_or_absent(step.max_exp_avg_sq), step.scalars,
                      view_or_absent(step.place)});
  }
  if (!steps.empty()) dispatch(steps.front().tensors.parameter.device(), AdamArgs{ranges, view_or_absent(factor)});
}

void sgd_steps(std::span<const SgdStep> steps, const Tensor& factor) {
  constexpr const char* kOp = SgdArgs::kName;
  check_factor(kOp, factor);
  std::vector<SgdArgs::Range> ranges;
  for (const SgdStep& step : steps) {
    const StepTensors& tensors = step.tensors;
    check_tensors(kOp, tensors);
    check_state(kOp, "the momentum buffer", step.momentum_buffer, tensors.parameter);
    common_device(kOp, {&steps.front().tensors.parameter, &tensors.parameter, &tensors.gradient, &tensors.copy, &factor,
                        &step.momentum_buffer});
    ranges.push_back({tensors.parameter.view(), view_or_absent(tensors.gradient), view_or_absent(tensors.copy),
                      view_or_absent(step.momentum_buffer), step.scalars});
  }
  if (!steps.empty()) dispatch(steps.front().tensors.parameter.device(), SgdArgs{ranges, view_or_absent(factor)});
}

LambSquares lamb_squares(const StepTensors& tensors, const Tensor& exp_avg, const Tensor& exp_avg_sq,
                         const LambScalars& scalars, LambSquares carry) {
  constexpr const char* kOp = LambSquaresArgs::kName;
  check_tensors(kOp, tensors);
  check_defined(kOp, "exp_avg", exp_avg);
  check_defined(kOp, "exp_avg_sq", exp_avg_sq);
  check_state(kOp, "exp_avg", exp_avg, tensors.parameter);
  check_state(kOp, "exp_avg_sq", exp_avg_sq, tensors.parameter);
  const Device device = common_device(kOp, {&tensors.parameter, &tensors.gradient, &exp_avg, &exp_avg_sq});
  const Tensor parameter_sums = block_sums_for(tensors.parameter.numel(), device);
  const Tensor update_sums = block_sums_for(tensors.parameter.numel(), device);
  dispatch(device, LambSquaresArgs{tensors.parameter.view(), view_or_absent(tensors.gradient), exp_avg.view(),
                                   exp_avg_sq.view(), parameter_sums.view(), update_sums.view(), scalars});
  return {add_in_order(parameter_sums, carry.parameter), add_in_order(update_sums, carry.update)};
}

void lamb_step(const StepTensors& tensors, const Tensor& exp_avg, const Tensor& exp_avg_sq, const LambScalars& scalars,
               double step_size) {
  constexpr const char* kOp = LambArgs::kName;
  check_tensors(kOp, tensors);
  check_defined(kOp, "exp_avg", exp_avg);
  check_defined(kOp, "exp_avg_sq", exp_avg_sq);
  check_state(kOp, "exp_avg", exp_avg, tensors.parameter);
  check_state(kOp, "exp_avg_sq", exp_avg_sq, tensors.parameter);
  const Device device =
      common_device(kOp, {&tensors.parameter, &tensors.gradient, &tensors.copy, &exp_avg, &exp_avg_sq});
  dispatch(device, LambArgs{tensors.parameter.view(), view_or_absent(tensors.gradient), view_or_absent(tensors.copy),
                            exp_avg.view(), exp_avg_sq.view(), scalars, static_cast<float>(step_size)});
}

}  // namespace castor
