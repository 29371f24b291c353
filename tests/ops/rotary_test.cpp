// The rotary embedding against rotations computed in f64, and its inverse.
#include "core/ops/rotary.h"

#include <cmath>

#include <doctest/doctest.h>

#include "autograd/ops/rotary.h"
#include "core/ops/cast.h"
#include "tests/support/op_check.h"

namespace castor {
namespace {

using namespace castor::test;

constexpr std::int64_t kPositions = 40;

/// Rotation by angles straight from the definition; `turned` elements of a head take part.
Array reference_rotary(const Array& x, std::int64_t turned, double base, std::int64_t offset) {
  Array y = x;
  const std::int64_t half = turned / 2;
  for (std::int64_t b = 0; b < x.shape[0]; ++b) {
    for (std::int64_t t = 0; t < x.shape[1]; ++t) {
      for (std::int64_t h = 0; h < x.shape[2]; ++h) {
        for (std::int64_t i = 0; i < half; ++i) {
          const double angle = static_cast<double>(t + offset) *
                               std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(turned));
          const double u = x.at({b, t, h, i}), v = x.at({b, t, h, i + half});
          y.at({b, t, h, i}) = u * std::cos(angle) - v * std::sin(angle);
          y.at({b, t, h, i + half}) = v * std::cos(angle) + u * std::sin(angle);
        }
      }
    }
  }
  return y;
}

RotaryTable table_for(DType dtype, std::int64_t turned, double base = 10000, Device device = kCpu) {
  return make_rotary_table(kPositions, turned, base, device, dtype == DType::f64 ? DType::f64 : DType::f32);
}

}  // namespace

TEST_CASE("rotary turns planes of half-split heads by their positions") {
  for (const std::int64_t offset : {std::int64_t{0}, std::int64_t{7}}) {
    OpCheck check;
    check.op = "rotary";
    check.dtypes = {DType::f32, DType::bf16, DType::f16, DType::f64};
    check.scale = 0.5;
    check.any_threads = true;
    check.run = [&](const Tensors& in) {
      return Tensors{rotary(in[0], table_for(in[0].dtype(), 8, 500, in[0].device()), offset)};
    };
    check.reference = [&](const Arrays& in) { return Arrays{reference_rotary(in[0], 8, 500, offset)}; };
    check_op(check, unary_cases({{2, 33, 3, 8}, {1, 5, 2, 12}, {1, 1, 1, 8}, {0, 3, 2, 8}, {2, 0, 1, 8}}));
  }
}

TEST_CASE("turning back undoes turning, also in place on a slice of a packed projection") {
  for (const DType dtype : {DType::f32, DType::f64}) {
    const RotaryTable table = table_for(dtype, 16);
    const Tensor packed = make_tensor(random_array({2, 9, 3, 2, 16}, 3), dtype);
    const Tensor original = clone(packed), keys = packed.select(2, 1);
    const Tensor turned = rotary(keys, table, 4);
    rotary_into(keys, table, keys, 4);
    check_same_bits("in place", keys, turned);
    check_same_bits("the neighbours stay", packed.select(2, 0), original.select(2, 0));
    check_same_bits("the neighbours stay", packed.select(2, 2), original.select(2, 2));
    rotary_into(keys, table, keys, 4, true);
    check_close("turned back", keys, to_array(original.select(2, 1)), dtype, tolerance(dtype), 1);
  }
}

TEST_CASE("rotary's gradient matches central differences") {
  GradientCheck check = variable_check("rotary of a variable", [](const std::vector<autograd::Variable>& in) {
    const RotaryTable table = table_for(in[0].dtype(), 6);
    const RotaryTable here = {to_device(table.cos, in[0].device()), to_device(table.sin, in[0].device())};
    return std::vector<autograd::Variable>{autograd::rotary(in[0], here, 2)};
  });
  check.scale = 0.5;
  check_gradient(check, unary_cases({{2, 5, 3, 8}}));
}

TEST_CASE("rotary refuses odd sizes, short tables and other dtypes") {
  const Tensor x = Tensor::zeros({1, 6, 2, 8}, DType::f32);
  const RotaryTable table = make_rotary_table(6, 8);
  CHECK_THROWS_AS(make_rotary_table(4, 7), ShapeError);
  CHECK_THROWS_AS(make_rotary_table(4, 0), ShapeError);
  CHECK_THROWS_AS(make_rotary_table(4, 8, 10000, kCpu, DType::bf16), DTypeError);
  CHECK_THROWS_AS(rotary(x, table, 1), ShapeError);
  CHECK_THROWS_AS(rotary(x, table, -1), ShapeError);
  CHECK_THROWS_AS(rotary(x, make_rotary_table(6, 10)), ShapeError);
  CHECK_THROWS_AS(rotary(x, {}), ShapeError);
  CHECK_THROWS_AS(rotary(x.select(0, 0), table), ShapeError);
  CHECK_THROWS_AS(rotary(cast(x, DType::f64), table), DTypeError);
  CHECK_THROWS_AS(rotary(cast(x, DType::i64), table), DTypeError);
  CHECK_THROWS_AS(rotary_into(x, table, Tensor::zeros({1, 6, 2, 4}, DType::f32)), ShapeError);
}

}  // namespace castor
