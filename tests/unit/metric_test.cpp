// Metrics against sums done by hand: ties, several k, positions that do not count, and what is refused.
#include "strategy/metric.h"

#include <cmath>
#include <vector>

#include <doctest/doctest.h>

#include "core/base/error.h"
#include "core/ops/cast.h"
#include "strategy/config.h"

namespace castor::strategy {
namespace {

autograd::Batch targets_of(const std::vector<std::int64_t>& targets, const Shape& shape) {
  return {Tensor::zeros({1}, DType::f32), Tensor::from_values(targets, shape)};
}

TEST_CASE("accuracy counts targets among the k largest logits, the lower class winning ties, over all batches") {
  Accuracy accuracy(Accuracy::Config{{1, 2}});
  // Ranks of the targets: 0, 2, 0 (a tie with a higher class), 1 (a tie with a lower class).
  const std::vector<float> logits = {3, 1, 2, 3, 1, 2, 2, 2, 0, 2, 2, 0};
  accuracy.process(targets_of({0, 1}, {2}),
                   Tensor::from_values(std::vector<float>(logits.begin(), logits.begin() + 6), {2, 3}));
  accuracy.process(targets_of({0, 1}, {2}),
                   Tensor::from_values(std::vector<float>(logits.begin() + 6, logits.end()), {2, 3}));
  CHECK(accuracy.compute() == std::map<std::string, double>{{"accuracy/top1", 50.0}, {"accuracy/top2", 75.0}});
  accuracy.reset();
  CHECK_THROWS_AS(accuracy.compute(), InternalError);
}

TEST_CASE("a metric reads predictions of any float type, and targets of any integer type") {
  const Tensor logits = cast(Tensor::from_values(std::vector<float>{0, 1, 1, 0}, {2, 2}), DType::bf16);
  const autograd::Batch batch{Tensor::zeros({1}, DType::f32),
                              Tensor::from_values(std::vector<std::int32_t>{1, 1}, {2})};
  Accuracy accuracy(Accuracy::Config{});
  accuracy.process(batch, logits);
  CHECK(accuracy.compute().at("accuracy/top1") == 50.0);
}

TEST_CASE("bits per byte is the mean negative log2-likelihood of the targets that count") {
  BitsPerByte metric({});
  CHECK_THROWS_AS(metric.compute(), InternalError);
  // 256 equal logits cost 8 bits, whatever their size; a target of -100 costs nothing.
  const std::vector<float> flat(2 * 256, 1000.0f);
  metric.process(targets_of({7, -100}, {1, 2}), Tensor::from_values(flat, {1, 2, 256}));
  CHECK(metric.compute().at("bits_per_byte") == doctest::Approx(8.0).epsilon(1e-12));
  // A target with probability 3/4 among two costs log2(4/3) bits.
  std::vector<float> sure(256, -1e9f);
  sure[0] = std::log(3.0f);
  sure[1] = 0;
  metric.process(targets_of({0}, {1}), Tensor::from_values(sure, {1, 256}));
  CHECK(metric.compute().at("bits_per_byte") == doctest::Approx((8.0 + std::log2(4.0 / 3.0)) / 2).epsilon(1e-6));
}

TEST_CASE("predictions that do not fit the targets are refused with both shapes") {
  Accuracy accuracy(Accuracy::Config{});
  const Tensor logits = Tensor::zeros({2, 3}, DType::f32);
  CHECK_THROWS_WITH_AS(accuracy.process(targets_of({0, 1, 2}, {3}), logits), doctest::Contains("f32[2,3]"), ShapeError);
  CHECK_THROWS_WITH_AS(accuracy.process(targets_of({0, 3}, {2}), logits), doctest::Contains("outside the 3 classes"),
                       ShapeError);
  CHECK_THROWS_AS(accuracy.process(targets_of({0}, {1}), Tensor::zeros({3}, DType::f32)), ShapeError);
}

TEST_CASE("accuracy's topk must hold numbers from 1") {
  for (const std::vector<std::int64_t>& bad : std::vector<std::vector<std::int64_t>>{{}, {0}, {1, -5}}) {
    ConfigNode list = ConfigNode::list();
    for (const std::int64_t k : bad) list.as_list().emplace_back(k);
    ConfigNode config = ConfigNode::map();
    config.set("topk", std::move(list));
    CHECK_THROWS_WITH_AS(parse_config<Accuracy::Config>(config, "metric"), doctest::Contains("topk"), ConfigError);
  }
}

}  // namespace
}  // namespace castor::strategy
