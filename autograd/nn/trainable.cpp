// Predictions without recording, and the rule that makes one loss of many.
#include "autograd/nn/trainable.h"

#include <algorithm>

#include "autograd/ops/elementwise.h"

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

Variable total_loss(const std::map<std::string, Variable>& losses) {
  Variable total;
  std::string names;
  for (const auto& [name, value] : losses) {
    names += names.empty() ? name : ", " + name;
    if (name.find("loss") == std::string::npos) continue;
    if (value.data().numel() != 1) {
      throw ShapeError(
          cat("total_loss: '", name, "' must have one element, got ", value.data(), "; take its mean or sum"));
    }
    const Variable scalar = value.ndim() == 0 ? value : reshape(value, {});
    total = total.defined() ? add(total, scalar) : scalar;
  }
  if (!total.defined()) {
    throw InternalError(cat("total_loss: no name contains 'loss' among [", names,
                            "]; name what is to be minimised 'loss' or '..._loss'"));
  }
  return total;
}

}  // namespace castor::autograd
