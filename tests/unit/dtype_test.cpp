// The small number formats, bit by bit: every value of each format survives a round trip, and rounding is to nearest
// even. The reference rounds in f64 from the formats' definitions, not from the code under test.
#include "core/base/dtype.h"

#include <cmath>
#include <vector>

#include <doctest/doctest.h>

using namespace castor;

namespace {

/// The finite values of a format with `exponent_bits` and `mantissa_bits`, by bit pattern (positive half).
std::vector<double> positive_values(int exponent_bits, int mantissa_bits, int finite_patterns) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  std::vector<double> values;
  for (int bits = 0; bits < finite_patterns; ++bits) {
    const int exponent = bits >> mantissa_bits, mantissa = bits & ((1 << mantissa_bits) - 1);
    const double scale = std::ldexp(1.0, -mantissa_bits);
    values.push_back(exponent == 0 ? std::ldexp(mantissa * scale, 1 - bias)
                                   : std::ldexp(1.0 + mantissa * scale, exponent - bias));
  }
  return values;
}

/// Index of the value nearest to x, ties to the even pattern.
std::size_t nearest(const std::vector<double>& values, double x) {
  std::size_t high = 0;
  while (high < values.size() && values[high] < x) ++high;
  if (high == values.size()) return values.size() - 1;
  if (high == 0 || values[high] == x) return high;
  const double below = x - values[high - 1], above = values[high] - x;
  if (below != above) return below < above ? high - 1 : high;
  return high % 2 == 0 ? high : high - 1;
}

template <class Convert>
void check_format(const std::vector<double>& values, Convert convert) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto exact = static_cast<float>(values[i]);
    REQUIRE(convert(exact) == i);
    if (i + 1 == values.size()) break;
    for (const double share : {0.25, 0.5, 0.75}) {
      const auto between = static_cast<float>(values[i] + share * (values[i + 1] - values[i]));
      REQUIRE(convert(between) == nearest(values, static_cast<double>(between)));
      REQUIRE(convert(std::nextafter(between, 0.0f)) ==
              nearest(values, static_cast<double>(std::nextafter(between, 0.0f))));
    }
  }
}

}  // namespace

TEST_CASE("f16 holds each of its values and rounds the rest to nearest even") {
  const auto values = positive_values(5, 10, 31 << 10);
  check_format(values, [](float x) { return static_cast<std::size_t>(to_half(x).bits); });
  for (std::size_t i = 0; i < values.size(); ++i) REQUIRE(to_float(Half{static_cast<std::uint16_t>(i)}) == values[i]);
  CHECK(to_half(65519.0f).bits == 0x7BFF);
  CHECK(to_half(65520.0f).bits == 0x7C00);
  CHECK(to_half(-INFINITY).bits == 0xFC00);
  CHECK(std::isnan(to_float(to_half(NAN))));
}

TEST_CASE("bf16 holds each of its values and rounds the rest to nearest even") {
  for (std::uint32_t bits = 0; bits < 0x7F80; ++bits) {
    const float value = to_float(BFloat16{static_cast<std::uint16_t>(bits)});
    REQUIRE(to_bfloat16(value).bits == bits);
  }
  CHECK(to_bfloat16(1.00390625f).bits == 0x3F80);  // 1 + 2^-8: a tie, to even
  CHECK(to_bfloat16(1.01171875f).bits == 0x3F82);  // 1 + 3 * 2^-8: a tie, to even
  CHECK(to_bfloat16(INFINITY).bits == 0x7F80);
  CHECK(std::isnan(to_float(to_bfloat16(NAN))));
}

TEST_CASE("f8e4m3 holds each of its values, rounds to nearest even and saturates at 448") {
  const auto values = positive_values(4, 3, 0x7F);
  CHECK(values.back() == 448.0);
  check_format(values, [](float x) { return static_cast<std::size_t>(to_float8_e4m3(x).bits); });
  for (std::size_t i = 0; i < values.size(); ++i)
    REQUIRE(to_float(Float8E4M3{static_cast<std::uint8_t>(i)}) == values[i]);
  CHECK(to_float(to_float8_e4m3(1e9f)) == 448.0f);
  CHECK(to_float(to_float8_e4m3(-INFINITY)) == -448.0f);
  CHECK(std::isnan(to_float(to_float8_e4m3(NAN))));
}

TEST_CASE("f8e5m2 holds each of its values, rounds to nearest even and overflows to infinity") {
  const auto values = positive_values(5, 2, 0x7C);
  CHECK(values.back() == 57344.0);
  check_format(values, [](float x) { return static_cast<std::size_t>(to_float8_e5m2(x).bits); });
  for (std::size_t i = 0; i < values.size(); ++i)
    REQUIRE(to_float(Float8E5M2{static_cast<std::uint8_t>(i)}) == values[i]);
  CHECK(to_float8_e5m2(61439.0f).bits == 0x7B);
  CHECK(to_float8_e5m2(61440.0f).bits == 0x7C);
  CHECK(std::isnan(to_float(to_float8_e5m2(NAN))));
}

TEST_CASE("a dtype is found by its name and an unknown name lists the valid ones") {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16, DType::f8e4m3, DType::f8e5m2, DType::f64, DType::i64,
                            DType::i32, DType::u8, DType::boolean}) {
    CHECK(dtype_from_name(dtype_name(dtype)) == dtype);
  }
  CHECK_THROWS_WITH_AS(dtype_from_name("float"), doctest::Contains("bf16"), DTypeError);
}
