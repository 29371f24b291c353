// Metrics of validation: fed batch by batch, asked once. Results are keyed as mmengine's: "accuracy/top1".
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "autograd/nn/trainable.h"

namespace castor::strategy {

class Metric {
 public:
  virtual ~Metric() = default;
  virtual void reset() = 0;
  /// predictions are what the model's `predict` gave for the batch.
  virtual void process(const autograd::Batch& batch, const Tensor& predictions) = 0;
  /// Results by key. Throws InternalError if nothing was processed.
  virtual std::map<std::string, double> compute() const = 0;
  /// What was counted so far as numbers that add up over ranks, each of which saw its own samples; and back.
  virtual std::vector<double> sums() const = 0;
  virtual void set_sums(std::span<const double> sums) = 0;
};

/// Share of rows, in percent, whose target is among the k largest logits.
class Accuracy final : public Metric {
 public:
  struct Config {
    std::vector<std::int64_t> topk{1};
  };
  explicit Accuracy(const Config& config) : config_(config), hits_(config.topk.size()) {}
  void reset() override;
  /// predictions f32 [n, classes]; targets i64 [n]
  void process(const autograd::Batch& batch, const Tensor& predictions) override;
  std::map<std::string, double> compute() const override;
  std::vector<double> sums() const override;
  void set_sums(std::span<const double> sums) override;

 private:
  Config config_;
  std::vector<std::int64_t> hits_;
  std::int64_t count_ = 0;
};

template <class V>
void describe(V& v, Accuracy::Config& c) {
  v.field("topk", c.topk, "a hit is a target among the k largest logits; one result for each k");
  v.check(
      "topk",
      [&] {
        return !c.topk.empty() && std::all_of(c.topk.begin(), c.topk.end(), [](std::int64_t k) { return k >= 1; });
      },
      "must hold at least one number, each at least 1");
}

/// Mean negative log2-likelihood of a target byte: what an arithmetic coder driven by the model would need.
class BitsPerByte final : public Metric {
 public:
  struct Config {};
  explicit BitsPerByte(const Config&) {}
  void reset() override;
  /// predictions f32 [..., vocabulary]; targets i64 [...], negative where a position does not count
  void process(const autograd::Batch& batch, const Tensor& predictions) override;
  std::map<std::string, double> compute() const override;
  std::vector<double> sums() const override { return {nats_, static_cast<double>(count_)}; }
  void set_sums(std::span<const double> sums) override;

 private:
  double nats_ = 0;
  std::int64_t count_ = 0;
};

template <class V>
void describe(V&, BitsPerByte::Config&) {}

}  // namespace castor::strategy
