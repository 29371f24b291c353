// Counter-based random numbers: an element depends on its key and its place alone, and the numbers have the promised
// distribution.
#include "core/ops/random.h"

#include <algorithm>
#include <cmath>

#include <doctest/doctest.h>

#include "autograd/ops/random.h"
#include "core/base/parallel.h"
#include "core/ops/cast.h"
#include "core/ops/elementwise.h"
#include "core/ops/random_values.h"
#include "tests/support/op_check.h"

namespace castor {
namespace {

using namespace castor::test;

constexpr RandomKey kKey{0x0123456789ABCDEFull, 0xFEDCBA9876543210ull};

using Fill = std::function<void(const Tensor&, RandomKey, std::uint64_t)>;

std::vector<std::pair<const char*, Fill>> fills() {
  return {
      {"uniform", [](const Tensor& y, RandomKey key, std::uint64_t offset) { fill_uniform(y, key, -2, 3, offset); }},
      {"normal", [](const Tensor& y, RandomKey key, std::uint64_t offset) { fill_normal(y, key, 1, 2, offset); }},
      {"truncated normal", [](const Tensor& y, RandomKey key,
                              std::uint64_t offset) { fill_truncated_normal(y, key, 0.5, 2, -1, 4, offset); }},
      {"dropout", [](const Tensor& y, RandomKey key, std::uint64_t offset) {
         fill(y, 1);
         copy_into(dropout(y, key, 0.3, offset), y);
       }}};
}

/// Largest distance between the empirical distribution of `values` and `cdf` (Kolmogorov's statistic), times sqrt(n).
double distance(std::vector<double> values, const std::function<double(double)>& cdf) {
  std::sort(values.begin(), values.end());
  const double n = static_cast<double>(values.size());
  double worst = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double at = cdf(values[i]);
    worst = std::max({worst, std::abs(at - static_cast<double>(i) / n), std::abs(at - static_cast<double>(i + 1) / n)});
  }
  return worst * std::sqrt(n);
}

double normal_cdf(double x) { return 0.5 * std::erfc(-x * M_SQRT1_2); }

std::vector<double> drawn(const Fill& fill_by, RandomKey key, std::int64_t count) {
  const Tensor y = Tensor::empty({count}, DType::f32);
  fill_by(y, key, 0);
  return to_array(y).values;
}

}  // namespace

TEST_CASE("a slice of a logical tensor has the bits of that part of the whole, in every dtype and with any threads") {
  for (const auto& [name, fill_by] : fills()) {
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16, DType::f64}) {
      const Tensor whole = Tensor::empty({20000}, dtype);
      fill_by(whole, kKey, 5);
      for (const auto& [start, count] :
           {std::pair<std::int64_t, std::int64_t>{0, 1}, {1, 3}, {250, 9000}, {255, 2}, {9999, 10001}}) {
        const Tensor part = Tensor::empty({count}, dtype);
        const int threads = num_threads();
        set_num_threads(3);
        fill_by(part, kKey, 5 + static_cast<std::uint64_t>(start));
        set_num_threads(threads);
        check_same_bits(cat(name, " from ", start, ", ", dtype), part, whole.narrow(0, start, count));
      }
    }
  }
}

TEST_CASE("keys, streams and far offsets give different numbers") {
  for (const auto& [name, fill_by] : fills()) {
    const std::vector<double> numbers = drawn(fill_by, kKey, 1000);
    CHECK_MESSAGE(numbers != drawn(fill_by, {kKey.key + 1, kKey.stream}, 1000), name);
    CHECK_MESSAGE(numbers != drawn(fill_by, {kKey.key, kKey.stream + 1}, 1000), name);
    CHECK_MESSAGE(numbers == drawn(fill_by, kKey, 1000), name);
    const Tensor far = Tensor::empty({1000}, DType::f32);
    fill_by(far, kKey, std::uint64_t{1} << 40);
    CHECK_MESSAGE(numbers != to_array(far).values, name);
  }
}

TEST_CASE("numbers are those of the Philox words of their elements") {
  const std::vector<double> numbers =
      drawn([](const Tensor& y, RandomKey key, std::uint64_t) { fill_uniform(y, key); }, kKey, 600);
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    CHECK(numbers[i] == static_cast<double>(uniform_from_word(philox(kKey, i / 4).word[i % 4])));
  }
}

TEST_CASE("numbers follow their distributions") {
  constexpr std::int64_t kCount = 200000;
  const auto all = fills();
  // 1.95 is Kolmogorov's bound at a level of 0.1 %.
  CHECK(distance(drawn(all[0].second, kKey, kCount), [](double x) { return (x + 2) / 5; }) < 1.95);
  CHECK(distance(drawn(all[1].second, kKey, kCount), [](double x) { return normal_cdf((x - 1) / 2); }) < 1.95);
  const double low = normal_cdf(-0.75), high = normal_cdf(1.75);
  CHECK(distance(drawn(all[2].second, kKey, kCount),
                 [=](double x) { return (normal_cdf((x - 0.5) / 2) - low) / (high - low); }) < 1.95);
  const std::vector<double> normal = drawn(all[1].second, kKey, kCount);
  double products = 0;  // neighbours share a draw and must still be independent
  for (std::size_t i = 0; i + 1 < normal.size(); i += 2) products += (normal[i] - 1) * (normal[i + 1] - 1) / 4;
  CHECK(std::abs(products / (0.5 * kCount)) < 0.01);
}

TEST_CASE("uniform and truncated numbers stay within their bounds") {
  const auto all = fills();
  for (const double x : drawn(all[0].second, {1, 2}, 100000)) CHECK_MESSAGE((x >= -2 && x < 3), x);
  for (const double x : drawn(all[2].second, {1, 2}, 100000)) CHECK_MESSAGE((x >= -1 && x <= 4), x);
}

TEST_CASE("the functions behind normal numbers are accurate in f32") {
  double turn_error = 0, inverse_error = 0;
  for (int i = 0; i < 20000; ++i) {
    const float u = static_cast<float>(i) / 20000.0f;
    const random_values::CosSin got = random_values::cos_sin_of_turn(u);
    const double angle = 2 * M_PI * static_cast<double>(u);
    turn_error = std::max({turn_error, std::abs(static_cast<double>(got.cos) - std::cos(angle)),
                           std::abs(static_cast<double>(got.sin) - std::sin(angle))});
    const float x = 2 * u - 1;
    if (i == 0) continue;
    const double y = static_cast<double>(random_values::erf_inverse(x));
    const double slope = 2 / std::sqrt(M_PI) * std::exp(-y * y);
    inverse_error =
        std::max(inverse_error, std::abs(std::erf(y) - static_cast<double>(x)) / slope / std::max(std::abs(y), 1e-3));
  }
  CHECK(turn_error < 1.5e-7);
  CHECK(inverse_error < 6e-7);
}

TEST_CASE("dropout drops the promised share and scales the rest") {
  const std::vector<double> kept = drawn(fills()[3].second, kKey, 100000);
  const double zeros = static_cast<double>(std::count(kept.begin(), kept.end(), 0.0));
  CHECK(std::abs(zeros / 100000 - 0.3) < 0.005);
  for (const double value : kept) CHECK((value == 0 || value == static_cast<double>(static_cast<float>(1 / 0.7))));
  const Tensor x = make_tensor(random_array({3, 5}, 1), DType::f32);
  check_same_bits("nothing dropped", dropout(x, kKey, 0), x);
  for (const double value : to_array(dropout(x, kKey, 1)).values) CHECK(value == 0);
}

TEST_CASE("dropout's gradient drops and scales the same elements, whatever the strides") {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16, DType::f64}) {
    const Tensor x = make_tensor(random_array({6, 50, 7}, 1), dtype, kCpu, Layout::permuted);
    check_same_bits(cat("strided ", dtype), dropout(x, kKey, 0.4), dropout(clone(x), kKey, 0.4));
    const Tensor ones = full(x.shape(), 1, dtype);
    const Tensor factors = dropout(ones, kKey, 0.4);
    check_same_bits(cat("gradient ", dtype), dropout_backward(ones, kKey, 0.4), factors);
  }
  GradientCheck check = variable_check("dropout of a variable", [](const std::vector<autograd::Variable>& in) {
    return std::vector<autograd::Variable>{autograd::dropout(in[0], kKey, 0.4)};
  });
  check_gradient(check, unary_cases({{4, 9}, {0, 2}, {}}));
}

TEST_CASE("dropout of probability 0 is the variable itself") {
  const autograd::Variable x(Tensor::zeros({3}, DType::f32), true);
  CHECK(autograd::dropout(x, kKey, 0).identity() == x.identity());
}

TEST_CASE("random ops work on meta and on empty tensors, and refuse what they cannot do") {
  const Device meta = make_meta({DeviceType::cpu, "", 0});
  for (const auto& [name, fill_by] : fills())
    fill_by(Tensor::empty({3, 4}, DType::f32, name == std::string("dropout") ? kCpu : meta), kKey, 0);
  CHECK(dropout(Tensor::empty({3, 4}, DType::bf16, meta), kKey, 0.5).shape() == Shape{3, 4});
  fill_uniform(Tensor::empty({0, 4}, DType::f32), kKey);
  const Tensor x = Tensor::zeros({4, 6}, DType::f32);
  CHECK_THROWS_AS(fill_uniform(x.transpose(0, 1), kKey), ShapeError);
  CHECK_THROWS_AS(fill_normal(cast(x, DType::i64), kKey), DTypeError);
  CHECK_THROWS_AS(fill_truncated_normal(x, kKey, 0, 1, 2, 2), ShapeError);
  CHECK_THROWS_AS(fill_truncated_normal(x, kKey, 0, 0, -1, 1), ShapeError);
  CHECK_THROWS_AS(dropout(x, kKey, 1.5), ShapeError);
  CHECK_THROWS_AS(dropout(x, kKey, std::nan("")), ShapeError);
  CHECK_THROWS_AS(dropout(cast(x, DType::i32), kKey, 0.5), DTypeError);
}

}  // namespace castor
