// The matmul family against naive f64 sums: broadcasting, transposed and strided operands, epilogues, empty sizes,
// gradients, and what the promise of equal bits asks of it.
#include "core/ops/matmul.h"

#include <cmath>
#include <thread>

#include <doctest/doctest.h>

#include "autograd/graph.h"
#include "autograd/ops/matmul.h"
#include "core/base/parallel.h"
#include "core/ops/cast.h"
#include "core/ops/elementwise.h"
#include "tests/support/op_check.h"

namespace castor {
namespace {

using namespace castor::test;

const std::vector<DType> kAllFloats = {DType::f32, DType::bf16, DType::f16, DType::f64};

Array matmul_reference(const Array& a, const Array& b) {
  const int da = a.shape.ndim(), db = b.shape.ndim();
  const std::int64_t m = a.shape[da - 2], k = a.shape[da - 1], n = b.shape[db - 1];
  const Shape batch = broadcast_shapes(Shape(std::span(a.shape.begin(), a.shape.end() - 2)),
                                       Shape(std::span(b.shape.begin(), b.shape.end() - 2)), "reference");
  const auto with = [&](std::int64_t rows, std::int64_t columns) {
    Shape shape = batch;
    shape.push_back(rows);
    shape.push_back(columns);
    return shape;
  };
  const Array left = a.broadcast_to(with(m, k)), right = b.broadcast_to(with(k, n));
  Array c(with(m, n));
  for (std::int64_t i = 0; i < batch.numel(); ++i) {
    for (std::int64_t row = 0; row < m; ++row) {
      for (std::int64_t column = 0; column < n; ++column) {
        double sum = 0;
        for (std::int64_t p = 0; p < k; ++p) sum += left[(i * m + row) * k + p] * right[(i * k + p) * n + column];
        c[(i * m + row) * n + column] = sum;
      }
    }
  }
  return c;
}

double activation_reference(Activation activation, double x) {
  switch (activation) {
    case Activation::none:
      return x;
    case Activation::relu:
      return std::max(x, 0.0);
    case Activation::gelu_tanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::gelu_erf:
      return 0.5 * x * (1 + std::erf(x * M_SQRT1_2));
    case Activation::silu:
      return x / (1 + std::exp(-x));
  }
  return 0;
}

/// x [..., k], weight [n, k], optional bias [n].
Array linear_reference(const Arrays& in, Activation activation) {
  const Array &x = in[0], &weight = in[1];
  const std::int64_t n = weight.shape[0], k = weight.shape[1],
                     rows = Shape(std::span(x.shape.begin(), x.shape.end() - 1)).numel();
  Shape shape = x.shape;
  shape[shape.ndim() - 1] = n;
  Array y(shape);
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t j = 0; j < n; ++j) {
      double sum = in.size() > 2 ? in[2][j] : 0;
      for (std::int64_t p = 0; p < k; ++p) sum += x[row * k + p] * weight[j * k + p];
      y[row * n + j] = activation_reference(activation, sum);
    }
  }
  return y;
}

constexpr Activation kActivations[] = {Activation::none, Activation::relu, Activation::gelu_tanh, Activation::gelu_erf,
                                       Activation::silu};

std::vector<OpCase> matmul_cases() {
  const std::vector<std::pair<Shape, Shape>> pairs = {
      {{3, 4}, {4, 5}},          {{1, 1}, {1, 1}},       {{1, 7}, {7, 1}},       {{5, 1}, {1, 6}},
      {{17, 33}, {33, 65}},      {{2, 3, 4}, {4, 5}},    {{2, 3, 4}, {2, 4, 5}}, {{3, 4}, {2, 4, 5}},
      {{2, 1, 3, 4}, {5, 4, 2}}, {{2, 5, 1, 4}, {4, 3}}, {{1, 3, 4}, {6, 4, 2}}, {{2, 3, 4, 5}, {2, 1, 5, 6}},
      {{0, 4}, {4, 5}},          {{3, 0}, {0, 5}},       {{3, 4}, {4, 0}},       {{0, 3, 4}, {4, 2}},
      {{2, 0, 4}, {2, 4, 5}},    {{2, 3, 0}, {0, 4}},    {{1, 1, 1, 9}, {9, 1}}, {{2, 2, 2, 2, 3}, {2, 1, 2, 3, 2}},
  };
  std::vector<OpCase> cases;
  for (const auto& [a, b] : pairs) cases.push_back({"matmul", {{a}, {b}}});
  return cases;
}

}  // namespace

TEST_CASE("matmul matches sums in f64 for broadcast, transposed, sliced and empty operands of every dtype") {
  OpCheck check;
  check.op = "matmul";
  check.dtypes = kAllFloats;
  check.scale = 1;
  check.run = [](const Tensors& in) { return Tensors{matmul(in[0], in[1])}; };
  check.reference = [](const Arrays& in) { return Arrays{matmul_reference(in[0], in[1])}; };
  check_op(check, matmul_cases());
}

TEST_CASE("matmul adds a bias before the one rounding") {
  OpCheck check;
  check.op = "matmul with bias";
  check.dtypes = kAllFloats;
  check.scale = 1;
  check.run = [](const Tensors& in) { return Tensors{matmul(in[0], in[1], in[2])}; };
  check.reference = [](const Arrays& in) {
    Array c = matmul_reference(in[0], in[1]);
    const std::int64_t n = in[2].numel();
    for (std::int64_t i = 0; i < c.numel(); ++i) c[i] += in[2][i % n];
    return Arrays{c};
  };
  check_op(check, {{"bias", {{{3, 4}}, {{4, 5}}, {{5}}}},
                   {"bias", {{{2, 3, 4}}, {{2, 4, 7}}, {{7}}}},
                   {"bias", {{{3, 0}}, {{0, 5}}, {{5}}}},
                   {"bias", {{{2, 3, 0}}, {{0, 5}}, {{5}}}},
                   {"bias", {{{1, 40}}, {{40, 1}}, {{1}}}}});
}

TEST_CASE("matmul of sizes around the kernels' blocks matches the reference") {
  OpCheck check;
  check.op = "matmul";
  check.scale = 1;
  check.slack = 2;
  check.run = [](const Tensors& in) { return Tensors{matmul(in[0], in[1])}; };
  check.reference = [](const Arrays& in) { return Arrays{matmul_reference(in[0], in[1])}; };
  check_op(check, {{"blocks", {{{64, 48}}, {{48, 96}}}},
                   {"blocks", {{{65, 127}}, {{127, 31}}}},
                   {"blocks", {{{129, 16}}, {{16, 130}}}},
                   {"blocks", {{{7, 300}}, {{300, 17}}}}});
}

TEST_CASE("matmul's gradients match central differences, also where operands were broadcast") {
  GradientCheck check = variable_check("matmul", [](const std::vector<autograd::Variable>& in) {
    return std::vector<autograd::Variable>{autograd::matmul(in[0], in[1])};
  });
  check.scale = 1;
  check_gradient(check, matmul_cases());
}

TEST_CASE("linear matches the reference with every activation, with and without a bias") {
  for (const Activation activation : kActivations) {
    OpCheck check;
    check.op = cat("linear, activation ", static_cast<int>(activation));
    check.dtypes = kAllFloats;
    check.scale = 1;
    check.slack = 2;
    check.run = [=](const Tensors& in) {
      Tensor saved;
      const Tensor y = linear(in[0], in[1], in.size() > 2 ? in[2] : Tensor{}, activation, &saved);
      const Tensor again = linear(in[0], in[1], in.size() > 2 ? in[2] : Tensor{}, activation);
      if (!y.device().is_meta()) check_same_bits("linear with and without saving", again, y);
      return Tensors{y};
    };
    check.reference = [=](const Arrays& in) { return Arrays{linear_reference(in, activation)}; };
    check_op(check, {{"linear", {{{5, 8}}, {{3, 8}}, {{3}}}},
                     {"linear", {{{2, 3, 8}}, {{20, 8}}}},
                     {"linear", {{{8}}, {{4, 8}}, {{4}}}},
                     {"linear", {{{0, 8}}, {{4, 8}}, {{4}}}},
                     {"linear", {{{3, 8}}, {{0, 8}}, {{0}}}},
                     {"linear", {{{3, 0}}, {{2, 0}}, {{2}}}},
                     {"linear", {{{40, 65}}, {{33, 65}}, {{33}}}}});
  }
}

TEST_CASE("linear's gradients match central differences for every activation") {
  for (const Activation activation : kActivations) {
    GradientCheck check = variable_check(
        cat("linear, activation ", static_cast<int>(activation)), [=](const std::vector<autograd::Variable>& in) {
          return std::vector<autograd::Variable>{
              autograd::linear(in[0], in[1], in.size() > 2 ? in[2] : autograd::Variable{}, activation)};
        });
    check.scale = 1;
    check.slack = 2;
    // Values far from relu's kink: the weights are positive, x is positive and the bias decides the side of each
    // column.
    const Operand bias{{4}, -1, 1, {}, {-40, 40, -40, 40}};
    std::vector<OpCase> cases = {{"linear", {{{3, 6}, 0.5, 1}, {{4, 6}, 0.5, 1}, bias}},
                                 {"linear", {{{2, 2, 6}, 0.5, 1}, {{4, 6}, 0.5, 1}}},
                                 {"linear", {{{6}, 0.5, 1}, {{4, 6}, 0.5, 1}, bias}},
                                 {"linear", {{{0, 6}}, {{4, 6}}, bias}}};
    if (activation != Activation::relu) cases.push_back({"linear", {{{150, 5}}, {{7, 5}}, {{7}}}});
    check_gradient(check, cases);
  }
}

TEST_CASE("gradients of layers are made where they are asked for, with the bits of those in memory of their own") {
  for (const DType dtype : kAllFloats) {
    CAPTURE(dtype);
    const auto random = [&](const Shape& shape, std::uint64_t seed) {
      return make_tensor(random_array(shape, seed), dtype);
    };
    const Tensor x = random({10, 16}, 1), fc = random({24, 16}, 2), proj = random({8, 24}, 3), dy = random({10, 8}, 4),
                 input = random({10, 24}, 5);
    const auto placed = [&](const Tensor& weight) {
      LinearNeeds needs;
      needs.weight_place = full(weight.shape(), 7, dtype, weight.device());
      needs.bias_place = full({weight.size(0)}, 7, dtype, weight.device());
      return needs;
    };
    const auto check = [](const LinearGradients& there, const LinearGradients& own, const LinearNeeds& needs) {
      CHECK(autograd::is_same_place(there.weight, needs.weight_place));
      CHECK(autograd::is_same_place(there.bias, needs.bias_place));
      check_same_bits("weight", there.weight, own.weight);
      check_same_bits("bias", there.bias, own.bias);
      if (own.x.defined()) check_same_bits("x", there.x, own.x);
    };
    const LinearNeeds single = placed(proj);
    check(linear_backward(clone(dy), input, proj, {}, Activation::none, single),
          linear_backward(clone(dy), input, proj, {}, Activation::none, {}), single);
    const LinearNeeds first = placed(fc), second = placed(proj);
    const auto both = [&](const LinearNeeds& fc_needs, const LinearNeeds& proj_needs) {
      return feed_forward_backward(clone(dy), x, fc, input, {Activation::gelu_tanh}, proj, fc_needs, proj_needs);
    };
    const FeedForwardGradients there = both(first, second), own = both({}, {});
    check(there.fc, own.fc, first);
    check(there.proj, own.proj, second);
  }
}

TEST_CASE("a feed-forward network that keeps no activation gives the bits of the two layers, forward and backward") {
  for (const DType dtype : kAllFloats) {
    for (const Activation activation : {Activation::relu, Activation::gelu_tanh, Activation::gelu_erf}) {
      for (const bool has_bias : {true, false}) {
        const auto leaf = [&](const Shape& shape, std::uint64_t seed) {
          return autograd::Variable(make_tensor(random_array(shape, seed), dtype), true);
        };
        using Gradients = std::vector<Tensor>;
        const auto run = [&](bool is_joined) {
          const autograd::Variable x = leaf({2, 5, 16}, 1), w1 = leaf({24, 16}, 2), w2 = leaf({8, 24}, 3);
          const autograd::Variable b1 = has_bias ? leaf({24}, 4) : autograd::Variable{},
                                   b2 = has_bias ? leaf({8}, 5) : autograd::Variable{};
          const autograd::Variable y = is_joined ? autograd::feed_forward(x, {w1, b1}, {activation}, {w2, b2})
                                                 : autograd::linear(autograd::linear(x, w1, b1, activation), w2, b2);
          autograd::backward(y, {make_tensor(random_array({2, 5, 8}, 6), dtype), nullptr, false});
          Gradients all{y.data(), x.grad(), w1.grad(), w2.grad()};
          if (has_bias) all.insert(all.end(), {b1.grad(), b2.grad()});
          return all;
        };
        const Gradients joined = run(true), apart = run(false);
        for (std::size_t i = 0; i < apart.size(); ++i)
          check_same_bits(cat("result ", i, " in ", dtype), joined[i], apart[i]);
      }
    }
  }
}

TEST_CASE("a feed-forward network keeps the activation's input and not its result") {
  const autograd::Variable x(make_tensor(random_array({64, 32}, 1), DType::f32), true),
      fc(make_tensor(random_array({512, 32}, 2), DType::f32), true),
      proj(make_tensor(random_array({32, 512}, 3), DType::f32), true);
  const auto kept = [&](bool is_joined) {
    const std::size_t before = allocator(kCpu).stats().current_total;
    const autograd::Variable y = is_joined ? autograd::feed_forward(x, {fc, {}}, {Activation::gelu_tanh}, {proj, {}})
                                           : autograd::linear(autograd::linear(x, fc, {}, Activation::gelu_tanh), proj);
    return allocator(kCpu).stats().current_total - before;
  };
  CHECK(kept(false) - kept(true) >= 64 * 512 * sizeof(float));
  CHECK_THROWS_AS(autograd::feed_forward(x, {fc, {}}, {Activation::none}, {proj, {}}), InternalError);
}

TEST_CASE("the gradient of the bias does not depend on the number of threads") {
  for (const DType dtype : kAllFloats) {
    const Tensor dy = make_tensor(random_array({1000, 37}, 5), dtype),
                 saved = make_tensor(random_array({1000, 37}, 6), dtype);
    const int threads = num_threads();
    set_num_threads(1);
    const auto [dx_one, dbias_one] = bias_backward(clone(dy), saved, Activation::gelu_tanh, true);
    set_num_threads(3);
    const auto [dx_three, dbias_three] = bias_backward(clone(dy), saved, Activation::gelu_tanh, true);
    set_num_threads(threads);
    check_same_bits("dx", dx_three, dx_one);
    check_same_bits("dbias", dbias_three, dbias_one);
    check_same_bits("dx of the unfused op", unary_backward(UnaryOp::gelu_tanh, saved, {}, dy), dx_one);
  }
}

TEST_CASE("a gradient that nobody else holds gives its bytes to the result, a shared one keeps its values") {
  const Tensor saved = make_tensor(random_array({6, 5}, 1), DType::f32);
  Tensor dy = make_tensor(random_array({6, 5}, 2), DType::f32);
  const Tensor kept = clone(dy);
  const auto [from_shared, bias_shared] = bias_backward(dy, saved, Activation::silu, true);
  check_same_bits("shared", dy, kept);
  const void* const address = dy.view().data;
  const auto [from_sole, bias_sole] = bias_backward(std::move(dy), saved, Activation::silu, true);
  CHECK(from_sole.view().data == address);
  check_same_bits("sole", from_sole, from_shared);
}

TEST_CASE("matmul reads overlapping and repeated windows of one tensor") {
  const Tensor base = make_tensor(random_array({60}, 4), DType::f32);
  const Tensor b = make_tensor(random_array({4, 3}, 5), DType::f32);
  const Tensor windows[] = {base.as_strided({5, 3, 4}, {2, 4, 1}, 0), base.as_strided({5, 3, 4}, {4, 1, 1}, 3),
                            base.as_strided({5, 3, 4}, {12, 0, 1}, 0), base.as_strided({5, 3, 4}, {0, 4, 1}, 7),
                            base.as_strided({5, 3, 4}, {1, 20, 5}, 0)};
  for (const Tensor& a : windows) {
    check_close(cat("windows with strides ", a.strides()), matmul(a, b), matmul_reference(to_array(a), to_array(b)),
                DType::f32, 2e-6, 1);
    const Tensor right = b.expand({5, 4, 3});
    check_close("windows on the right", matmul(right.transpose(1, 2), a.transpose(1, 2)),
                matmul_reference(to_array(right.transpose(1, 2)), to_array(a.transpose(1, 2))), DType::f32, 2e-6, 1);
  }
}

TEST_CASE("relu in a linear layer lets NaN through") {
  const Tensor x = make_tensor(Array({2, 2}, {std::nan(""), 1, -1, 1}), DType::f32),
               weight = make_tensor(Array({1, 2}, {1, 1}), DType::f32);
  const Array y = to_array(linear(x, weight, {}, Activation::relu));
  CHECK(std::isnan(y[0]));
  CHECK(y[1] == 0);
}

TEST_CASE("two products of the same operands give the same bits") {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    const Tensor a = make_tensor(random_array({130, 190}, 1), dtype),
                 b = make_tensor(random_array({190, 70}, 2), dtype);
    check_same_bits(cat("matmul ", dtype), matmul(a, b), matmul(a, b));
  }
}

TEST_CASE("threads multiply at once and share nothing") {
  const Tensor b = make_tensor(random_array({48, 40}, 1), DType::f32);
  std::vector<Tensor> left, want, got(4);
  for (int i = 0; i < 4; ++i) {
    left.push_back(make_tensor(random_array({16 + 8 * (i % 2), 48}, 2), DType::f32));
    want.push_back(matmul(left.back(), b));
  }
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      for (int repeat = 0; repeat < 50; ++repeat) got[i] = matmul(left[i], b);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (std::size_t i = 0; i < 4; ++i) check_same_bits("product of a thread", got[i], want[i]);
}

TEST_CASE("a step of a linear layer allocates on meta what it allocates on the cpu") {
  const Device meta = make_meta({DeviceType::cpu, "", 0});
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    const auto peaks = [&](Device device) {
      const Tensor x = Tensor::zeros({64, 96}, dtype, device), weight = Tensor::zeros({80, 96}, dtype, device);
      const Tensor bias = Tensor::zeros({80}, dtype, device);
      allocator(device).reset_peaks();
      const MemoryStats before = allocator(device).stats();
      Tensor saved;
      const Tensor y = linear(x, weight, bias, Activation::gelu_tanh, &saved);
      const LinearGradients gradients =
          linear_backward(Tensor::zeros({64, 80}, dtype, device), x, weight, saved, Activation::gelu_tanh);
      const MemoryStats after = allocator(device).stats();
      return std::pair(after.peak_total - before.current_total,
                       after.peak[static_cast<std::size_t>(Category::workspace)]);
    };
    const auto on_cpu = peaks(kCpu), on_meta = peaks(meta);
    CHECK(on_cpu.first == on_meta.first);
    CHECK(on_cpu.second == on_meta.second);
  }
}

TEST_CASE("the matmul family names what does not fit") {
  const auto f32 = [](const Shape& shape) { return Tensor::zeros(shape, DType::f32); };
  CHECK_THROWS_WITH_AS(matmul(f32({8, 512}), f32({256, 64})),
                       "matmul: inner sizes differ: a is f32[8,512], b is f32[256,64]", ShapeError);
  CHECK_THROWS_WITH_AS(matmul(f32({4}), f32({4, 2})),
                       "matmul: expected operands with at least 2 axes, got f32[4] and f32[4,2]; unsqueeze vectors",
                       ShapeError);
  CHECK_THROWS_AS(matmul(f32({2, 3, 4}), f32({3, 4, 5})), ShapeError);
  CHECK_THROWS_AS(matmul(f32({2, 3}), f32({3, 4}), f32({3})), ShapeError);
  CHECK_THROWS_WITH_AS(matmul(f32({2, 3}), Tensor::zeros({3, 4}, DType::f16)),
                       "matmul: expected operands of one dtype, got f32[2,3] and b is f16[3,4]; cast one of them",
                       DTypeError);
  CHECK_THROWS_AS(matmul(Tensor::zeros({2, 2}, DType::i64), Tensor::zeros({2, 2}, DType::i64)), DTypeError);
  CHECK_THROWS_AS(matmul(f32({2, 3}), Tensor::zeros({3, 4}, DType::f32, make_meta({DeviceType::cpu, "", 0}))),
                  DeviceError);
  CHECK_THROWS_WITH_AS(linear(f32({2, 3}), f32({4, 5})),
                       "linear: expected x [..., k] and weight [n, k], got x f32[2,3] and weight f32[4,5]", ShapeError);
  CHECK_THROWS_AS(linear(f32({2, 3}), f32({4, 3}), f32({3})), ShapeError);
  CHECK_THROWS_AS(linear_backward(f32({2, 5}), f32({2, 3}), f32({4, 3}), {}, Activation::none), ShapeError);
  CHECK_THROWS_AS(linear_backward(f32({2, 4}), f32({2, 3}), f32({4, 3}), {}, Activation::relu), ShapeError);
}

}  // namespace castor
