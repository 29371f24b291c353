// Metrics read predictions on the host; evaluation is small beside training.
#include "strategy/metric.h"

#include <algorithm>
#include <cmath>

#include "core/ops/cast.h"

namespace castor::strategy {
namespace {

/// Calls visit(logits of the row, classes, target) for each row.
template <class Visit>
void for_each_row(const char* name, const autograd::Batch& batch, const Tensor& predictions, Visit&& visit) {
  if (predictions.ndim() < 2 || predictions.numel() / predictions.shape().back() != batch.targets.numel()) {
    throw ShapeError(
        cat(name, ": expected one row of logits for each target, got ", predictions, " for ", batch.targets));
  }
  const std::int64_t classes = predictions.shape().back();
  const std::vector<float> logits = contiguous(cast(predictions, DType::f32)).to_vector<float>();
  const std::vector<std::int64_t> targets = contiguous(cast(batch.targets, DType::i64)).to_vector<std::int64_t>();
  for (std::size_t row = 0; row < targets.size(); ++row) {
    if (targets[row] >= classes)
      throw ShapeError(cat(name, ": target ", targets[row], " is outside the ", classes, " classes"));
    if (targets[row] >= 0) visit(logits.data() + row * static_cast<std::size_t>(classes), classes, targets[row]);
  }
}

}  // namespace

void Accuracy::reset() {
  std::fill(hits_.begin(), hits_.end(), 0);
  count_ = 0;
}

void Accuracy::process(const autograd::Batch& batch, const Tensor& predictions) {
  for_each_row("Accuracy", batch, predictions, [&](const float* logits, std::int64_t classes, std::int64_t target) {
    // Rank of the target; among equal logits the lower class wins, as argmax does.
    std::int64_t rank = 0;
    for (std::int64_t c = 0; c < classes; ++c)
      rank += logits[c] > logits[target] || (logits[c] == logits[target] && c < target) ? 1 : 0;
    for (std::size_t i = 0; i < config_.topk.size(); ++i) hits_[i] += rank < config_.topk[i] ? 1 : 0;
    ++count_;
  });
}

std::map<std::string, double> Accuracy::compute() const {
  if (count_ == 0) throw InternalError("Accuracy: nothing was processed");
  std::map<std::string, double> results;
  for (std::size_t i = 0; i < config_.topk.size(); ++i) {
    results[cat("accuracy/top", config_.topk[i])] = 100.0 * static_cast<double>(hits_[i]) / static_cast<double>(count_);
  }
  return results;
}

// Counts below 2^53 are exact as doubles.
std::vector<double> Accuracy::sums() const {
  std::vector<double> sums(hits_.begin(), hits_.end());
  sums.push_back(static_cast<double>(count_));
  return sums;
}

void Accuracy::set_sums(std::span<const double> sums) {
  for (std::size_t i = 0; i < hits_.size(); ++i) hits_[i] = static_cast<std::int64_t>(sums[i]);
  count_ = static_cast<std::int64_t>(sums[hits_.size()]);
}

void BitsPerByte::set_sums(std::span<const double> sums) {
  nats_ = sums[0];
  count_ = static_cast<std::int64_t>(sums[1]);
}

void BitsPerByte::reset() {
  nats_ = 0;
  count_ = 0;
}

void BitsPerByte::process(const autograd::Batch& batch, const Tensor& predictions) {
  for_each_row("BitsPerByte", batch, predictions, [&](const float* logits, std::int64_t classes, std::int64_t target) {
    const float largest = *std::max_element(logits, logits + classes);
    double sum = 0;
    for (std::int64_t c = 0; c < classes; ++c) sum += std::exp(static_cast<double>(logits[c] - largest));
    nats_ += std::log(sum) + static_cast<double>(largest) - static_cast<double>(logits[target]);
    ++count_;
  });
}

std::map<std::string, double> BitsPerByte::compute() const {
  if (count_ == 0) throw InternalError("BitsPerByte: nothing was processed");
  return {{"bits_per_byte", nats_ / std::log(2.0) / static_cast<double>(count_)}};
}

}  // namespace castor::strategy
