// Every functor of pointwise.h on every dtype and layout: the GPU's results against the CPU's, bit by bit.
//
// What may differ, and by how much: pow, which is each platform's own library (8 units in the last place; one for 16
// bits), and f64's transcendental functions, for the same reason (1e-12 of 1 + |y|).
#include "core/ops/pointwise.h"

#include <doctest/doctest.h>

#include "core/ops/elementwise.h"
#include "tests/gpu/same_bits.h"

using namespace castor;
using namespace castor::test;

namespace {

constexpr DType kFloats[] = {DType::f32, DType::bf16, DType::f16, DType::f64};
constexpr int kUnaryCount = static_cast<int>(UnaryOp::silu) + 1;
constexpr int kBinaryCount = static_cast<int>(BinaryOp::minimum) + 1;
constexpr int kCompareCount = static_cast<int>(CompareOp::ge) + 1;

struct Scalars {
  double a = 0;
  double b = 0;
};

Scalars scalars_of(UnaryOp op) {
  if (op == UnaryOp::affine) return {1.7, -0.3};
  if (op == UnaryOp::clamp) return {-1.5, 2.25};
  if (op == UnaryOp::pow) return {2.3, 0};
  return {};
}

// The C library's, in f64: exp, log and what is made of them; pow in every dtype.
bool is_exact(UnaryOp op, bool is_slope) {
  switch (op) {
    case UnaryOp::affine:
    case UnaryOp::clamp:
    case UnaryOp::abs:
    case UnaryOp::sqrt:
    case UnaryOp::rsqrt:
    case UnaryOp::reciprocal:
    case UnaryOp::square:
    case UnaryOp::relu:
      return true;
    case UnaryOp::log:
    case UnaryOp::exp:
    case UnaryOp::tanh:
    case UnaryOp::sigmoid:
      return is_slope;
    default:
      return false;
  }
}

Tolerance tolerance_of(UnaryOp op, DType dtype, bool is_slope) {
  if (op == UnaryOp::pow) return {dtype == DType::f32 || dtype == DType::f64 ? 8 : 1, 0};
  if (dtype == DType::f64 && !is_exact(op, is_slope)) return {0, 1e-12};
  return {};
}

// Any bits at all, but for functions with a tolerance, where the error is stated for ordinary numbers.
Values values_of(UnaryOp op, DType dtype, bool is_slope) {
  if (op == UnaryOp::pow) return {false, 0.1, 10};
  return {tolerance_of(op, dtype, is_slope).absolute == 0, -10, 10};
}

// The operands' shapes after broadcasting, and what the second one is before.
struct BroadcastCase {
  Shape x, y;
};

std::vector<BroadcastCase> broadcast_cases() {
  return {{{33, 64}, {64}}, {{33, 64}, {33, 1}},      {{33, 67}, {67}},         {{64}, {33, 64}},
          {{5, 7}, {}},     {{4, 1, 16}, {1, 8, 16}}, {{4, 3, 8, 8}, {3, 1, 1}}};
}

}  // namespace

TEST_CASE("every unary op has the CPU's bits") {
  for (int index = 0; index < kUnaryCount; ++index) {
    const auto op = static_cast<UnaryOp>(index);
    const Scalars at = scalars_of(op);
    for (const DType dtype : kFloats) {
      for (const Layout layout : kLayouts) {
        for (const Shape& shape : all_shapes()) {
          const Twin x = make_twin(shape, dtype, values_of(op, dtype, false), layout);
          const std::string what = cat("unary ", index, ' ', name_of(dtype, shape, layout));
          check_same(what, {unary(op, x.cpu, at.a, at.b), unary(op, x.gpu, at.a, at.b)},
                     tolerance_of(op, dtype, false));
          unary_inplace(op, x.cpu, at.a, at.b);
          unary_inplace(op, x.gpu, at.a, at.b);
          check_same(what + " in place", x, tolerance_of(op, dtype, false));
        }
      }
    }
  }
}

TEST_CASE("every slope times a gradient has the CPU's bits") {
  for (int index = 0; index < kUnaryCount; ++index) {
    const auto op = static_cast<UnaryOp>(index);
    const Scalars at = scalars_of(op);
    const bool by_output = slope_uses_output_only(op);
    for (const DType dtype : kFloats) {
      for (const Layout layout : kLayouts) {
        for (const Shape& shape : all_shapes()) {
          const Twin saved = make_twin(shape, dtype, values_of(op, dtype, true), layout, 2);
          const Twin dy = make_twin(shape, dtype, values_of(op, dtype, true), Layout::dense, 3);
          const auto slope = [&](const Tensor& s, const Tensor& gradient) {
            return unary_backward(op, by_output ? Tensor() : s, by_output ? s : Tensor(), gradient, at.a, at.b);
          };
          check_same(cat("slope ", index, ' ', name_of(dtype, shape, layout)),
                     {slope(saved.cpu, dy.cpu), slope(saved.gpu, dy.gpu)}, tolerance_of(op, dtype, true));
        }
      }
    }
  }
}

TEST_CASE("many values of f32 give the CPU's bits in every function") {
  const Twin x = make_twin({(std::int64_t{1} << 20) + 3}, DType::f32, {true, -20, 20}, Layout::dense, 11);
  for (int index = 0; index < kUnaryCount; ++index) {
    const auto op = static_cast<UnaryOp>(index);
    if (op == UnaryOp::pow) continue;
    const Scalars at = scalars_of(op);
    check_same(cat("unary ", index), {unary(op, x.cpu, at.a, at.b), unary(op, x.gpu, at.a, at.b)});
  }
}

TEST_CASE("every binary op has the CPU's bits") {
  for (int index = 0; index < kBinaryCount; ++index) {
    const auto op = static_cast<BinaryOp>(index);
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16, DType::f64, DType::i64, DType::i32}) {
      const bool is_integer = !is_floating(dtype);
      if (is_integer && (op == BinaryOp::div || op == BinaryOp::pow)) {
        const Twin x = make_twin({4}, dtype);
        CHECK_THROWS_AS(binary(op, x.gpu, x.gpu), DTypeError);
        continue;
      }
      const bool is_pow = op == BinaryOp::pow;
      const Values values = is_pow ? Values{false, 0.1, 4} : is_integer ? Values{false, -30000, 30000} : Values{true};
      const Tolerance tolerance{is_pow ? (dtype_size(dtype) == 2 ? 1 : 8) : 0, 0};
      const auto compare_both = [&](const std::string& what, const Twin& x, const Twin& y) {
        check_same(what, {binary(op, x.cpu, y.cpu), binary(op, x.gpu, y.gpu)}, tolerance);
      };
      for (const Layout layout : kLayouts) {
        for (const Shape& shape : all_shapes()) {
          const Twin x = make_twin(shape, dtype, values, layout, 4),
                     y = make_twin(shape, dtype, values, Layout::dense, 5);
          const std::string what = cat("binary ", index, ' ', name_of(dtype, shape, layout));
          compare_both(what, x, y);
          binary_inplace(op, x.cpu, y.cpu);
          binary_inplace(op, x.gpu, y.gpu);
          check_same(what + " in place", x, tolerance);
        }
        for (const BroadcastCase& shapes : broadcast_cases()) {
          compare_both(cat("binary ", index, ' ', name_of(dtype, shapes.x, layout), " with ", shapes.y),
                       make_twin(shapes.x, dtype, values, layout, 6), make_twin(shapes.y, dtype, values, layout, 7));
        }
      }
    }
  }
}

TEST_CASE("every comparison of every dtype gives the CPU's answers") {
  for (int index = 0; index < kCompareCount; ++index) {
    const auto op = static_cast<CompareOp>(index);
    for (int type = 0; type <= static_cast<int>(DType::boolean); ++type) {
      const auto dtype = static_cast<DType>(type);
      for (const Layout layout : kLayouts) {
        for (const Shape& shape : all_shapes()) {
          const Twin x = make_twin(shape, dtype, {true, -2, 2}, layout, 8);
          // Every third element is equal: y is x where the mask says so.
          const Twin other = make_twin(shape, dtype, {true, -2, 2}, Layout::dense, 9);
          const Twin mask = make_twin(shape, DType::boolean, {}, layout, 10);
          const Twin y{where(mask.cpu, x.cpu, other.cpu), where(mask.gpu, x.gpu, other.gpu)};
          const std::string what = cat("compare ", index, ' ', name_of(dtype, shape, layout));
          check_same(what + ": where", y);
          check_same(what, {compare(op, x.cpu, y.cpu), compare(op, x.gpu, y.gpu)});
        }
      }
      for (const BroadcastCase& shapes : broadcast_cases()) {
        const Twin x = make_twin(shapes.x, dtype, {true, -2, 2}, Layout::dense, 8);
        const Twin y = make_twin(shapes.y, dtype, {true, -2, 2}, Layout::dense, 9);
        check_same(cat("compare ", index, ' ', dtype, ' ', shapes.x, " with ", shapes.y),
                   {compare(op, x.cpu, y.cpu), compare(op, x.gpu, y.gpu)});
        const Twin mask = make_twin(shapes.y, DType::boolean, {}, Layout::dense, 10);
        check_same(cat("where ", dtype, ' ', shapes.x, " with ", shapes.y),
                   {where(mask.cpu, x.cpu, y.cpu), where(mask.gpu, x.gpu, y.gpu)});
      }
    }
  }
}

TEST_CASE("two runs give the same bits") {
  const Twin x = make_twin({513, 1031}, DType::bf16, {true}, Layout::sliced, 12);
  const Tensor first = unary(UnaryOp::gelu_tanh, x.gpu), second = unary(UnaryOp::gelu_tanh, x.gpu);
  std::vector<char> a(first.storage()->bytes()), b(a.size());
  first.copy_to_host(a.data(), a.size());
  second.copy_to_host(b.data(), b.size());
  CHECK(a == b);
}

TEST_CASE("operands on different devices are refused") {
  const Twin x = make_twin({4}, DType::f32);
  CHECK_THROWS_WITH_AS(add(x.cpu, x.gpu), doctest::Contains("operands on different devices"), DeviceError);
  CHECK_THROWS_WITH_AS(x.gpu.data<float>(), doctest::Contains("only on cpu"), DeviceError);
}
