// Accuracy of the shared elementary functions against the C library in f64, over the ranges their docs promise.
#include "core/base/math.h"

#include <cmath>
#include <limits>

#include <doctest/doctest.h>

#include "core/base/philox.h"

using namespace castor;

namespace {

/// |got - wanted| in units of wanted's last place in f32.
double ulps(float got, double wanted) {
  const auto rounded = static_cast<float>(wanted);
  if (got == rounded) return 0;
  const double unit = std::max(std::ldexp(1.0, std::ilogb(wanted == 0 ? 1e-38 : wanted) - 23), std::ldexp(1.0, -149));
  return std::abs(static_cast<double>(got) - wanted) / unit;
}

template <class Ours, class Theirs>
double worst_ulps(float low, float high, Ours ours, Theirs theirs) {
  double worst = 0;
  for (int i = 0; i <= 200000; ++i) {
    const float x = low + (high - low) * static_cast<float>(i) / 200000.0f;
    worst = std::max(worst, ulps(ours(x), theirs(static_cast<double>(x))));
  }
  return worst;
}

}  // namespace

TEST_CASE("exp, log, tanh, sigmoid and erf are within 3 units in the last place") {
  CHECK(worst_ulps(
            -87.0f, 88.0f, [](float x) { return math::exp(x); }, [](double x) { return std::exp(x); }) <= 3);
  CHECK(worst_ulps(
            -1.0f, 1.0f, [](float x) { return math::exp(x); }, [](double x) { return std::exp(x); }) <= 3);
  CHECK(worst_ulps(
            1e-30f, 3.0f, [](float x) { return math::log(x); }, [](double x) { return std::log(x); }) <= 3);
  CHECK(worst_ulps(
            0.5f, 1e30f, [](float x) { return math::log(x); }, [](double x) { return std::log(x); }) <= 3);
  CHECK(worst_ulps(
            -9.0f, 9.0f, [](float x) { return math::tanh(x); }, [](double x) { return std::tanh(x); }) <= 3);
  CHECK(worst_ulps(
            -20.0f, 20.0f, [](float x) { return math::sigmoid(x); },
            [](double x) { return 1.0 / (1.0 + std::exp(-x)); }) <= 3);
  CHECK(worst_ulps(
            -5.0f, 5.0f, [](float x) { return math::erf(x); }, [](double x) { return std::erf(x); }) <= 3);
}

TEST_CASE("the elementary functions treat zeros, infinities, subnormals and NaN as IEEE asks") {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  CHECK(math::exp(0.0f) == 1.0f);
  CHECK(math::exp(-kInfinity) == 0.0f);
  CHECK(math::exp(kInfinity) == kInfinity);
  CHECK(std::isnan(math::exp(NAN)));
  CHECK(ulps(math::exp(-100.0f), std::exp(-100.0)) <= 3);
  CHECK(math::log(1.0f) == 0.0f);
  CHECK(math::log(0.0f) == -kInfinity);
  CHECK(math::log(kInfinity) == kInfinity);
  CHECK(std::isnan(math::log(-1.0f)));
  CHECK(ulps(math::log(1e-42f), std::log(static_cast<double>(1e-42f))) <= 3);
  CHECK(math::tanh(kInfinity) == 1.0f);
  CHECK(math::tanh(-kInfinity) == -1.0f);
  CHECK(math::tanh(0.0f) == 0.0f);
  CHECK(math::erf(kInfinity) == 1.0f);
  CHECK(math::sigmoid(-kInfinity) == 0.0f);
  CHECK(math::sigmoid(kInfinity) == 1.0f);
}

TEST_CASE("Philox gives the vectors its authors published") {
  // Random123 1.14, kat_vectors: philox4x32-10.
  const Philox4 zeros = philox({0, 0}, 0);
  CHECK(zeros.word[0] == 0x6627e8d5u);
  CHECK(zeros.word[1] == 0xe169c58du);
  CHECK(zeros.word[2] == 0xbc57ac4cu);
  CHECK(zeros.word[3] == 0x9b00dbd8u);
  const Philox4 ones = philox({0xffffffffffffffffull, 0xffffffffffffffffull}, 0xffffffffffffffffull);
  CHECK(ones.word[0] == 0x408f276du);
  CHECK(ones.word[1] == 0x41c83b0eu);
  CHECK(ones.word[2] == 0xa20bc7c6u);
  CHECK(ones.word[3] == 0x6d5451fdu);
}
