// conv2d against a direct f64 sum: strides, padding, dilation, groups, depthwise, one channel, empty sizes, every dtype
// and layout, and its gradients, which oneDNN computes by other kernels than the forward pass.
#include "core/ops/conv.h"

#include <cmath>
#include <type_traits>

#include <doctest/doctest.h>

#include "autograd/ops/conv.h"
#include "core/ops/cast.h"
#include "core/ops/channels_last.h"
#include "core/ops/elementwise.h"
#include "tests/support/op_check.h"

namespace castor {
namespace {

using namespace castor::test;

struct ConvRow {
  Shape x, weight;
  ConvGeometry geometry = {};
};

std::int64_t result_size(const ConvRow& row, int axis) {
  const ConvGeometry& g = row.geometry;
  return (row.x[2 + axis] + 2 * g.padding[axis] - g.dilation[axis] * (row.weight[2 + axis] - 1) - 1) / g.stride[axis] +
         1;
}

Array conv_reference(const Arrays& in, const ConvGeometry& g) {
  const Array &x = in[0], &weight = in[1];
  const ConvRow row{x.shape, weight.shape, g};
  const std::int64_t outputs = weight.shape[0], inputs = weight.shape[1],
                     per_group = std::max<std::int64_t>(1, outputs / g.groups);
  Array y({x.shape[0], outputs, result_size(row, 0), result_size(row, 1)});
  for (std::int64_t i = 0; i < y.numel(); ++i) {
    const Shape at = y.index_of(i);
    double sum = in.size() > 2 ? in[2][at[1]] : 0;
    for (std::int64_t c = 0; c < inputs; ++c) {
      for (std::int64_t kh = 0; kh < weight.shape[2]; ++kh) {
        for (std::int64_t kw = 0; kw < weight.shape[3]; ++kw) {
          const std::int64_t h = at[2] * g.stride[0] - g.padding[0] + kh * g.dilation[0];
          const std::int64_t w = at[3] * g.stride[1] - g.padding[1] + kw * g.dilation[1];
          if (h < 0 || w < 0 || h >= x.shape[2] || w >= x.shape[3]) continue;
          sum += x.at({at[0], at[1] / per_group * inputs + c, h, w}) * weight.at({at[1], c, kh, kw});
        }
      }
    }
    y[i] = sum;
  }
  return y;
}

const std::vector<ConvRow>& rows() {
  static const std::vector<ConvRow> table = {
      {{2, 3, 6, 5}, {4, 3, 3, 3}},
      {{2, 1, 8, 8}, {5, 1, 5, 5}, {{1, 1}, {2, 2}}},
      {{1, 16, 7, 7}, {16, 16, 3, 3}, {{1, 1}, {1, 1}}},
      {{2, 16, 8, 8}, {32, 16, 3, 3}, {{2, 2}, {1, 1}}},
      {{2, 8, 8, 6}, {12, 8, 1, 1}, {{2, 2}}},
      {{2, 4, 5, 9}, {6, 4, 1, 3}, {{1, 2}, {0, 1}}},
      {{1, 3, 9, 9}, {2, 3, 3, 2}, {{1, 1}, {2, 0}, {2, 3}}},
      {{2, 6, 5, 5}, {4, 3, 3, 3}, {{1, 1}, {1, 1}, {1, 1}, 2}},
      {{1, 16, 6, 6}, {16, 1, 3, 3}, {{1, 1}, {1, 1}, {1, 1}, 16}},
      {{2, 6, 6, 6}, {12, 1, 3, 3}, {{2, 1}, {1, 1}, {1, 2}, 6}},
      {{1, 2, 4, 4}, {3, 2, 4, 4}},
      {{1, 2, 3, 3}, {3, 2, 3, 3}, {{1, 1}, {3, 3}}},
      {{3, 5, 1, 1}, {7, 5, 1, 1}},
      {{1, 1, 1, 1}, {1, 1, 1, 1}},
      {{0, 3, 5, 5}, {4, 3, 3, 3}},
      {{2, 0, 5, 5}, {4, 0, 3, 3}},
      {{2, 3, 5, 5}, {0, 3, 3, 3}},
  };
  return table;
}

OpCase case_of(const ConvRow& row, bool has_bias) {
  const ConvGeometry& g = row.geometry;
  OpCase result{cat("stride ", g.stride[0], ",", g.stride[1], " padding ", g.padding[0], ",", g.padding[1],
                    " dilation ", g.dilation[0], ",", g.dilation[1], " groups ", g.groups),
                {{row.x}, {row.weight}}};
  if (has_bias) result.operands.push_back({{row.weight[0]}});
  return result;
}

ConvGeometry square(std::int64_t stride, std::int64_t padding) {
  return {{stride, stride}, {padding, padding}, {1, 1}, 1};
}

}  // namespace

TEST_CASE("conv2d matches a direct sum for every geometry, dtype and layout, with and without a bias") {
  for (const ConvRow& row : rows()) {
    OpCheck check;
    check.op = "conv2d";
    check.dtypes = {DType::f32, DType::bf16, DType::f16, DType::f64};
    check.scale = 1;
    check.slack = 2;
    check.run = [&](const Tensors& in) {
      return Tensors{conv2d(in[0], in[1], in.size() > 2 ? in[2] : Tensor{}, row.geometry)};
    };
    check.reference = [&](const Arrays& in) { return Arrays{conv_reference(in, row.geometry)}; };
    check_op(check, {case_of(row, false), case_of(row, true)});
  }
}

TEST_CASE("conv2d's gradients match central differences for every geometry") {
  for (const ConvRow& row : rows()) {
    GradientCheck check = variable_check("conv2d", [&](const std::vector<autograd::Variable>& in) {
      return std::vector<autograd::Variable>{
          autograd::conv2d(in[0], in[1], in.size() > 2 ? in[2] : autograd::Variable{}, row.geometry)};
    });
    check.scale = 1;
    check.slack = 2;
    check_gradient(check, {case_of(row, false), case_of(row, true)});
  }
}

TEST_CASE("an activation in conv2d is the op after it, forward and backward") {
  const ConvGeometry geometry = square(1, 1);
  const Tensor x = make_tensor(random_array({3, 4, 6, 6}, 1), DType::f32),
               weight = make_tensor(random_array({8, 4, 3, 3}, 2), DType::f32);
  const Tensor bias = make_tensor(random_array({8}, 3), DType::f32),
               dy = make_tensor(random_array({3, 8, 6, 6}, 4), DType::f32);
  const Tensor plain = conv2d(x, weight, bias, geometry);
  for (const Activation activation :
       {Activation::relu, Activation::gelu_tanh, Activation::gelu_erf, Activation::silu}) {
    Tensor saved;
    const Tensor y = conv2d(x, weight, bias, geometry, activation, &saved);
    check_same_bits("saved", saved, plain);
    check_same_bits("fused forward", y, unary(unary_op(activation), plain));
    check_same_bits("without saving", conv2d(x, weight, bias, geometry, activation), y);
    const LinearGradients fused = conv2d_backward(clone(dy), x, weight, saved, geometry, activation);
    const LinearGradients apart =
        conv2d_backward(unary_backward(unary_op(activation), plain, {}, dy), x, weight, {}, geometry, Activation::none);
    check_same_bits("dx", fused.x, apart.x);
    check_same_bits("dweight", fused.weight, apart.weight);
    check_same_bits("dbias", fused.bias, apart.bias);
  }
}

TEST_CASE("conv2d reads channels-last activations without a copy and gives them") {
  const Tensor row_major = make_tensor(random_array({2, 16, 6, 6}, 1), DType::f32), x = channels_last(row_major);
  const Tensor weight = make_tensor(random_array({16, 16, 3, 3}, 2), DType::f32);
  const std::uint64_t before = allocator(kCpu).stats().allocations;
  const Tensor y = conv2d(x, weight, {}, square(1, 1));
  CHECK(allocator(kCpu).stats().allocations - before == 2);  // the result and its scratch
  CHECK(is_channels_last(y));
  check_same_bits("row-major", conv2d(row_major, weight, {}, square(1, 1)), y);
}

TEST_CASE("only the gradients asked for are computed") {
  const Tensor x = make_tensor(random_array({1, 2, 4, 4}, 1), DType::f32),
               weight = make_tensor(random_array({3, 2, 3, 3}, 2), DType::f32);
  const Tensor dy = make_tensor(random_array({1, 3, 2, 2}, 3), DType::f32);
  const LinearGradients only_weight = conv2d_backward(dy, x, weight, {}, {}, Activation::none, {false, true, false});
  CHECK(!only_weight.x.defined());
  CHECK(only_weight.weight.defined());
  CHECK(!only_weight.bias.defined());
  // Places for gradients belong to linear layers; here they cannot even be given.
  CHECK_FALSE(std::is_invocable_v<decltype(conv2d_backward), Tensor, Tensor, Tensor, Tensor, ConvGeometry, Activation,
                                  LinearNeeds>);
}

TEST_CASE("a convolution allocates on meta what it allocates on the cpu") {
  const Device meta = make_meta({DeviceType::cpu, "", 0});
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const auto peaks = [&](Device device) {
      const Tensor x = Tensor::zeros({2, 16, 9, 9}, dtype, device),
                   weight = Tensor::zeros({32, 16, 3, 3}, dtype, device);
      const Tensor bias = Tensor::zeros({32}, dtype, device);
      allocator(device).reset_peaks();
      const MemoryStats before = allocator(device).stats();
      Tensor saved;
      const Tensor y = conv2d(x, weight, bias, square(2, 1), Activation::relu, &saved);
      conv2d_backward(Tensor::zeros({2, 32, 5, 5}, dtype, device), x, weight, saved, square(2, 1), Activation::relu);
      const MemoryStats after = allocator(device).stats();
      return std::pair(after.peak_total - before.current_total,
                       after.peak[static_cast<std::size_t>(Category::workspace)]);
    };
    const auto on_cpu = peaks(kCpu), on_meta = peaks(meta);
    CHECK(on_cpu.first == on_meta.first);
    CHECK(on_cpu.second == on_meta.second);
  }
}

TEST_CASE("conv2d names what does not fit") {
  const auto f32 = [](const Shape& shape) { return Tensor::zeros(shape, DType::f32); };
  CHECK_THROWS_WITH_AS(
      conv2d(f32({2, 3, 5}), f32({4, 3, 3, 3})),
      "conv2d: expected x [n, c, h, w] and weight [o, c / groups, kh, kw], got x f32[2,3,5] and weight f32[4,3,3,3]",
      ShapeError);
  CHECK_THROWS_AS(conv2d(f32({2, 3, 5, 5}), f32({4, 2, 3, 3})), ShapeError);
  CHECK_THROWS_AS(conv2d(f32({2, 4, 5, 5}), f32({3, 2, 3, 3}), {}, {{1, 1}, {0, 0}, {1, 1}, 2}), ShapeError);
  CHECK_THROWS_AS(conv2d(f32({2, 3, 5, 5}), f32({4, 3, 3, 3}), {}, {{0, 1}}), ShapeError);
  CHECK_THROWS_AS(conv2d(f32({2, 3, 5, 5}), f32({4, 3, 3, 3}), f32({3})), ShapeError);
  CHECK_THROWS_WITH_AS(conv2d(f32({2, 3, 4, 5}), f32({4, 3, 5, 5})),
                       "conv2d: the kernel reaches over 5 pixels, the padded image has 4 (x f32[2,3,4,5], weight "
                       "f32[4,3,5,5], padding 0, "
                       "dilation 1); use more padding or a smaller kernel",
                       ShapeError);
  CHECK_THROWS_AS(conv2d(f32({2, 3, 5, 5}), Tensor::zeros({4, 3, 3, 3}, DType::bf16)), DTypeError);
  CHECK_THROWS_AS(conv2d(Tensor::zeros({1, 1, 3, 3}, DType::u8), Tensor::zeros({1, 1, 3, 3}, DType::u8)), DTypeError);
  CHECK_THROWS_AS(conv2d_backward(f32({2, 4, 5, 5}), f32({2, 3, 5, 5}), f32({4, 3, 3, 3}), {}, {}, Activation::none),
                  ShapeError);
}

}  // namespace castor
