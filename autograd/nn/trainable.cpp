// Predictions without recording, and the rule that makes one loss of many.
#include "autograd/nn/trainable.h"

#include <algorithm>

#include "autograd/ops/elementwise.h"
#include "autograd/ops/reduce.h"

namespace castor::autograd {

Tensor TrainableModel::predict(const Batch& batch) {
  const NoGradScope no_grad;
  return forward(batch.inputs).data();
}

LossItems TrainableModel::loss_items(const Batch& batch) const {
  constexpr std::int64_t kIgnored = -100;  // CrossEntropyOptions::ignore_index
  const Tensor& targets = batch.targets;
  if (!targets.defined()) return {batch.inputs.size(0), batch.inputs.size(0)};
  const LossItems all{targets.numel(), targets.numel()};
  if (targets.device().is_meta()) return all;
  const auto count = [&](const auto& values) {
    return LossItems{all.all - std::count(values.begin(), values.end(), kIgnored), all.all};
  };
  if (targets.dtype() == DType::i64) return count(targets.to_vector<std::int64_t>());
  if (targets.dtype() == DType::i32) return count(targets.to_vector<std::int32_t>());
  return all;
}

namespace {

Variable mean_value(const Variable& value) {
  if (value.data().numel() != 1) return mean(value);
  return value.ndim() == 0 ? value : reshape(value, {});
}

}  // namespace

ParsedLosses parse_losses(const std::map<std::string, Variable>& losses) {
  ParsedLosses parsed;
  std::string names;
  for (const auto& [name, value] : losses) {
    names += names.empty() ? name : ", " + name;
    const Variable scalar = mean_value(value);
    if (name != "loss") parsed.values.emplace_back(name, scalar);
    if (name.find("loss") == std::string::npos) continue;
    parsed.total = parsed.total.defined() ? add(parsed.total, scalar) : scalar;
  }
  if (!parsed.total.defined()) {
    throw InternalError(cat("parse_losses: no name contains 'loss' among [", names,
                            "]; name what is to be minimised 'loss' or '..._loss'"));
  }
  parsed.values.emplace(parsed.values.begin(), "loss", parsed.total);
  return parsed;
}

Variable total_loss(const std::map<std::string, Variable>& losses) { return parse_losses(losses).total; }

Variable sum_of_means(const std::vector<Variable>& losses) {
  if (losses.empty()) throw InternalError("sum_of_means: the list of losses is empty");
  Variable sum = mean_value(losses.front());
  for (std::size_t i = 1; i < losses.size(); ++i) sum = add(sum, mean_value(losses[i]));
  return sum;
}

}  // namespace castor::autograd
