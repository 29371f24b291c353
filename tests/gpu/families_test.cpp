// The ops that fold, draw, move by index or update, on the GPU against the CPU's results, bit by bit where both add in
// one order. The case tables of tests/ops say that the values are right.
//
// What may differ, and by how much: the norms, whose rows the GPU adds in words of 16 bytes and whose weight gradients
// in a tree of its own (2e-5, one unit in the last place of 16 bits); results through f64's exponential and logarithm,
// which are each platform's own; 16-bit rows through the GPU's own exponential.
#include <cmath>
#include <limits>
#include <tuple>
#include <utility>

#include <doctest/doctest.h>

#include "core/ops/activation.h"
#include "core/ops/adam8bit.h"
#include "core/ops/came.h"
#include "core/ops/cast.h"
#include "core/ops/dynamic_code.h"
#include "core/ops/index.h"
#include "core/ops/norm.h"
#include "core/ops/optim.h"
#include "core/ops/pointwise_steps.h"
#include "core/ops/random.h"
#include "core/ops/reduce.h"
#include "core/ops/rotary.h"
#include "core/ops/softmax.h"
#include "tests/gpu/same_bits.h"
#include "tests/support/long_run.h"

using namespace castor;
using namespace castor::test;

namespace {

constexpr DType kFloats[] = {DType::f32, DType::bf16, DType::f16, DType::f64};

Tolerance loose(DType dtype) { return {dtype == DType::f64 ? 0 : 2, dtype == DType::f64 ? 1e-12 : 0}; }

Twin integers(const Shape& shape, std::int64_t below, std::uint64_t seed) {
  return make_twin(shape, DType::i64, {false, 0, static_cast<double>(below)}, Layout::dense, seed);
}

/// f of both sides.
template <class F>
Twin both(const F& f) {
  return {f(true), f(false)};
}

std::vector<Shape> row_shapes() {
  return {{1, 1}, {9, 33}, {25, 128}, {6, 512}, {40, 768}, {33, 1024}, {5, 1025}, {70, 1600}, {3, 5000}, {2, 20000}};
}

}  // namespace

TEST_CASE("rows of softmax are the CPU's") {
  for (const DType dtype : kFloats) {
    for (const Shape& shape : row_shapes()) {
      const Twin x = make_twin(shape, dtype, {false, -8, 8}), dy = make_twin(shape, dtype, {false, -1, 1});
      check_same(cat("softmax ", dtype, shape), {softmax(x.cpu), softmax(x.gpu)}, loose(dtype));
      const Twin y{softmax(x.cpu), to_device(softmax(x.cpu), kGpu)};
      const Tolerance tolerance = dtype == DType::f64 ? Tolerance{0, 1e-12} : Tolerance{};
      check_same(cat("softmax backward ", dtype, shape),
                 {softmax_backward(y.cpu, dy.cpu), softmax_backward(y.gpu, dy.gpu)}, tolerance);
    }
  }
}

TEST_CASE("layer and rms norm are the CPU's, forward and backward") {
  for (const DType dtype : kFloats) {
    for (const Shape& shape : row_shapes()) {
      const std::string what = cat(dtype, shape);
      const Shape vector{shape[1]};
      const Twin x = make_twin(shape, dtype, {false, -3, 3}), residual = make_twin(shape, dtype, {}, Layout::dense, 2),
                 w = make_twin(vector, dtype, {}, Layout::dense, 3), b = make_twin(vector, dtype, {}, Layout::dense, 4),
                 dy = make_twin(shape, dtype, {}, Layout::dense, 5);
      for (const bool is_rms : {false, true}) {
        const auto forward = [&](const Tensor& of_x, const Tensor& of_w, const Tensor& of_b,
                                 const Tensor& of_residual) {
          return is_rms ? rms_norm(of_x, of_w, 1e-6, of_residual) : layer_norm(of_x, of_w, of_b, 1e-5, of_residual);
        };
        const LayerNormed cpu = forward(x.cpu, w.cpu, b.cpu, residual.cpu),
                          gpu = forward(x.gpu, w.gpu, b.gpu, residual.gpu);
        const Tolerance tree = dtype == DType::f64 ? Tolerance{0, 1e-12} : Tolerance{dtype == DType::f32 ? 0 : 1, 2e-5};
        check_same("sum " + what, {cpu.sum, gpu.sum});
        check_same("norm " + what, {cpu.y, gpu.y}, tree);
        check_same("rstd " + what, {cpu.rstd, gpu.rstd}, tree);
        if (!is_rms) check_same("mean " + what, {cpu.mean, gpu.mean}, tree);
        const NormGradients from_cpu = layer_norm_backward(cpu.sum, w.cpu, cpu.mean, cpu.rstd, dy.cpu, residual.cpu),
                            from_gpu = layer_norm_backward(gpu.sum, w.gpu, gpu.mean, gpu.rstd, dy.gpu, residual.gpu);
        check_same("dx " + what, {from_cpu.x, from_gpu.x}, tree);
        check_same("dweight " + what, {from_cpu.weight, from_gpu.weight}, tree);
        if (!is_rms) check_same("dbias " + what, {from_cpu.bias, from_gpu.bias}, tree);
      }
    }
  }
}

TEST_CASE("reductions have the CPU's bits in every order of memory") {
  std::vector<Shape> shapes = {{7, 33}, {40, 3, 200}, {2, 40000}};
  if (!short_run()) shapes.insert(shapes.end(), {{67, 1031}, {3, 4, 5, 6}});
  for (int index = 0; index <= static_cast<int>(ReduceOp::variance); ++index) {
    const auto op = static_cast<ReduceOp>(index);
    for (const DType dtype : kFloats) {
      for (const Layout layout : kLayouts) {
        if (short_run() && layout != Layout::dense && layout != Layout::permuted) continue;
        for (const Shape& shape : shapes) {
          const Twin x = make_twin(shape, dtype, {false, -4, 4}, layout);
          for (const Shape& axes : {Shape{}, Shape{0}, Shape{-1}, Shape{0, -1}}) {
            check_same(cat("reduce ", index, " over ", axes, " of ", name_of(dtype, shape, layout)),
                       {reduce(op, x.cpu, axes), reduce(op, x.gpu, axes)},
                       op == ReduceOp::logsumexp ? Tolerance{1, 1e-12} : Tolerance{});
          }
          check_same("argmax", {argmax(x.cpu, 0), argmax(x.gpu, 0)});
          check_same("argmax", {argmax(x.cpu, -1), argmax(x.gpu, -1)});
        }
      }
    }
  }
}

// More blocks of rows than CUDA takes along the second axis of a launch.
TEST_CASE("a sum over more than 2^26 rows of few columns is right") {
  constexpr std::int64_t kRows = 67'200'000;
  const Tensor x = Tensor::zeros({kRows, 2}, DType::bf16, kGpu), ones = full({3, 2}, 1.0, DType::bf16, kGpu);
  for (const std::int64_t first : {std::int64_t{0}, kRows / 2, kRows - 3}) copy_into(ones, x.narrow(0, first, 3));
  const Tensor sums = reduce(ReduceOp::sum, x, {0});
  CHECK(to_device(cast(sums, DType::f32), kCpu).to_vector<float>() == std::vector<float>{9, 9});
}

TEST_CASE("the gradient of gelu at huge numbers of 16 bits is that of a line") {
  const std::vector<float> huge = {2e13f, -2e13f, 3e38f, -3e38f, 40, -40, 1e6f, -1e6f};
  const Tensor saved = cast(Tensor::from_values(huge, {1, 8}, kGpu), DType::bf16);
  for (const bool needs_bias : {false, true}) {
    const Tensor dx = bias_backward(full({1, 8}, 2, DType::bf16, kGpu), saved, Activation::gelu_tanh, needs_bias).first;
    CHECK(to_device(cast(dx, DType::f32), kCpu).to_vector<float>() == std::vector<float>{2, 0, 2, 0, 2, 0, 2, 0});
  }
}

TEST_CASE("random numbers and dropout have the CPU's bits wherever a range begins") {
  for (const DType dtype : kFloats) {
    for (const std::uint64_t offset : {0ull, 1ull, 7ull, 1026ull, (1ull << 40) + 3}) {
      for (int kind = 0; kind < 3; ++kind) {
        const Twin y = both([&](bool on_cpu) {
          const Tensor result = Tensor::empty({1013}, dtype, on_cpu ? kCpu : kGpu);
          if (kind == 0) fill_uniform(result, {5, 6}, -2, 3, offset);
          if (kind == 1) fill_normal(result, {5, 6}, 1, 0.02, offset);
          if (kind == 2) fill_truncated_normal(result, {5, 6}, 0, 1, -2, 1.5, offset);
          return result;
        });
        check_same(cat("fill ", kind, ' ', dtype, " from ", offset), y);
      }
      const Twin x = make_twin({1013}, dtype);
      check_same("dropout", {dropout(x.cpu, {1, 2}, 0.3, offset), dropout(x.gpu, {1, 2}, 0.3, offset)});
    }
  }
}

TEST_CASE("optimizer steps and sums of squares have the CPU's bits in every dtype") {
  for (const std::int64_t count : {1, 1023, 5000}) {
    for (const DType gradient : {DType::f32, DType::bf16, DType::f16}) {
      for (const DType copy : {DType::f32, DType::bf16, DType::f16}) {
        const Twin g = make_twin({count}, gradient);
        const auto step = [&](bool on_cpu, int kind) {
          const auto pick = [&](const Twin& twin) { return on_cpu ? twin.cpu : twin.gpu; };
          std::vector<Tensor> state;
          for (std::uint64_t i = 0; i < 4; ++i)
            state.push_back(pick(make_twin({count}, DType::f32, {false, 0.1, 2}, Layout::dense, 20 + i)));
          const Tensor rounded = copy == DType::f32 ? Tensor() : Tensor::zeros({count}, copy, on_cpu ? kCpu : kGpu);
          const StepTensors tensors{state[0], pick(g), rounded};
          if (kind == 0) adam_step(tensors, state[1], state[2], {}, adam_scalars({}, 3, 0.5));
          if (kind == 1) adam_step(tensors, state[1], state[2], state[3], adam_scalars({}, 3, 0.5));
          if (kind == 2) sgd_step(tensors, state[1], {0.5f, 0.1f, 0.9f, 0.1f, 0.01f, true, false});
          if (kind == 3) lamb_step(tensors, state[1], state[2], {}, 0.01);
          if (kind == 4) adagrad_step(tensors, state[1], {0.5f, 0.1f, 0.01f, 1e-6f});
          if (kind == 5) lion_step(tensors, state[1], {0.5f, 0.9f, 0.1f, 0.75f, 0.25f, 0.01f, 0.99f});
          if (kind == 6)
            rmsprop_step(tensors, state[1], state[2], state[3], {2, 0.01f, 0.9f, 0.1f, 0.8f, 0.01f, 1e-3f});
          if (kind == 7) rmsprop_step(tensors, state[1], {}, {}, {});
          if (kind == 8) {
            const Device device = on_cpu ? kCpu : kGpu;
            const Adam8bitStates codes{full({count}, kSignedZero, DType::u8, device),
                                       Tensor::zeros({count}, DType::u8, device),
                                       Tensor::zeros({block_count(count)}, DType::f32, device),
                                       Tensor::zeros({block_count(count)}, DType::f32, device)};
            for (int t = 1; t <= 3; ++t) adam8bit_step(tensors, codes, adam_scalars({}, t, 0.5));
            for (const Tensor& x : {codes.mean_codes, codes.square_codes, codes.mean_scales, codes.square_scales})
              state.push_back(x);
          }
          state.push_back(rounded);
          return state;
        };
        for (int kind = 0; kind < 9; ++kind) {
          const std::vector<Tensor> cpu = step(true, kind), gpu = step(false, kind);
          for (std::size_t i = 0; i < cpu.size(); ++i) {
            if (cpu[i].defined()) check_same(cat("step ", kind, " tensor ", i, " of ", count), {cpu[i], gpu[i]});
          }
        }
        CHECK(sum_squares(g.cpu) == sum_squares(g.gpu));
      }
    }
  }
}

TEST_CASE("many ranges stepped and summed together have the bits of each by itself, whatever their sizes and dtypes") {
  constexpr int kRanges = 300;  // more than one launch takes
  struct Item {
    Tensor parameter, gradient, copy, mean, square, largest, sums;
    StepTensors tensors() const { return {parameter, gradient, copy}; }
  };
  const auto items = [&](bool on_cpu) {
    std::vector<Item> all;
    for (int i = 0; i < kRanges; ++i) {
      const std::int64_t count = i % 7 == 0 ? 0 : i % 5 == 0 ? 1 + 37 * i : 1024 * (i % 4) + i % 3;
      constexpr DType kDTypes[] = {DType::bf16, DType::f32, DType::f16};
      const auto seed = static_cast<std::uint64_t>(10 * i);
      // Of every second range neither address is a multiple of a word's.
      const auto make = [&](DType dtype, std::uint64_t more) {
        const Twin twin = make_twin({count + 1}, dtype, {false, 0.1, 2}, Layout::dense, seed + more);
        return (on_cpu ? twin.cpu : twin.gpu).narrow(0, i % 2, count);
      };
      Item& item = all.emplace_back();
      item.parameter = make(DType::f32, 0);
      if (i % 11 != 0) item.gradient = make(kDTypes[i % 3], 1);
      if (i % 3 != 1) item.copy = make(i % 2 == 0 ? DType::bf16 : DType::f16, 2);
      item.mean = make(DType::f32, 3);
      item.square = make(DType::f32, 4);
      if (i % 4 == 0) item.largest = make(DType::f32, 5);
      item.sums = Tensor::zeros({block_count(count)}, DType::f64, on_cpu ? kCpu : kGpu);
    }
    return all;
  };
  const std::vector<Item> one = items(true), together = items(false);
  std::vector<AdamStep> adam;
  std::vector<SgdStep> sgd;
  std::vector<BlockSquares> squares;
  for (int i = 0; i < kRanges; ++i) {
    const Item &a = one[static_cast<std::size_t>(i)], &b = together[static_cast<std::size_t>(i)];
    const AdamScalars scalars = adam_scalars({.lr = 0.01 * (i % 2 + 1)}, 3, 0.5);
    adam_step(a.tensors(), a.mean, a.square, a.largest, scalars);
    sgd_step(a.tensors(), a.mean, {0.5f, 0.1f, 0.9f, 0.1f, 0.01f * static_cast<float>(i % 5), true, false});
    adam.push_back({b.tensors(), b.mean, b.square, b.largest, scalars});
    sgd.push_back({b.tensors(), b.mean, {0.5f, 0.1f, 0.9f, 0.1f, 0.01f * static_cast<float>(i % 5), true, false}});
    const BlockSquares mine{a.parameter, a.sums};
    block_squares({&mine, 1});
    squares.push_back({b.parameter, b.sums});
  }
  adam_steps(adam);
  sgd_steps(sgd);
  block_squares(squares);
  for (int i = 0; i < kRanges; ++i) {
    const Item &a = one[static_cast<std::size_t>(i)], &b = together[static_cast<std::size_t>(i)];
    for (const auto& [x, y] : {std::pair(a.parameter, b.parameter),
                               {a.copy, b.copy},
                               {a.mean, b.mean},
                               {a.square, b.square},
                               {a.largest, b.largest},
                               {a.sums, b.sums}}) {
      if (x.defined()) check_same(cat("range ", i, " of ", x.numel()), {x, y});
    }
  }
}

TEST_CASE("steps with factored moments have the CPU's bits, residuals too") {
  for (const DType gradient : {DType::f32, DType::bf16, DType::f16}) {
    for (const FactoredShape& shape :
         {FactoredShape{1, 75, 100}, FactoredShape{5, 3, 500}, FactoredShape{1, 3, 2500}}) {
      const std::int64_t count = shape.batch * shape.rows * shape.columns, offset = 2 * kStatisticsBlock;
      const Twin g = make_twin({count - offset}, gradient);
      const auto step = [&](bool on_cpu) {
        const auto make = [&](std::int64_t n, std::uint64_t seed) {
          const Twin twin = make_twin({n}, DType::f32, {false, 0.1, 2}, Layout::dense, seed);
          return on_cpu ? twin.cpu : twin.gpu;
        };
        const Tensor parameter = make(count - offset, 20), mean = make(count - offset, 21);
        const AdafactorMoments squares{make(shape.row_count(), 22), make(shape.column_count(), 23), {}};
        std::vector<double> rows(static_cast<std::size_t>(shape.row_count())),
            columns(static_cast<std::size_t>(shape.column_count()));
        const Tensor& of_range = on_cpu ? g.cpu : g.gpu;
        came_residuals(of_range, mean, squares, shape, offset, {}, rows, columns);
        const AdafactorMoments residuals = adafactor_moments(squares, shape, rows, columns, 0.9, 1e-16);
        came_step({parameter, of_range, {}}, mean, squares, residuals, shape, offset, {});
        const Tensor vector = make(count - offset, 24), second = make(count - offset, 25);
        came_step({vector, of_range, {}}, mean, {{}, {}, second}, {}, {}, offset, {});
        return std::vector<Tensor>{parameter, mean, residuals.row, residuals.column, vector, second};
      };
      const std::vector<Tensor> cpu = step(true), gpu = step(false);
      for (std::size_t i = 0; i < cpu.size(); ++i) check_same(cat("came, tensor ", i), {cpu[i], gpu[i]});
    }
  }
}

TEST_CASE("moves and sums by index have the CPU's bits, with many positions of one id") {
  for (const DType dtype : kFloats) {
    for (const std::int64_t width : {1, 48, 769}) {
      const Twin table = make_twin({50, width}, dtype), dy = make_twin({2000, width}, dtype, {}, Layout::dense, 2);
      const Twin ids = integers({2000}, 37, 3);
      check_same("embedding", {embedding(table.cpu, ids.cpu), embedding(table.gpu, ids.gpu)});
      check_same("embedding backward",
                 {embedding_backward(dy.cpu, ids.cpu, 50, 4), embedding_backward(dy.gpu, ids.gpu, 50, 4)});
      embedding_backward_add(dy.cpu, ids.cpu, table.cpu, 4);
      embedding_backward_add(dy.gpu, ids.gpu, table.gpu, 4);
      check_same("embedding backward added", table);
    }
    const Twin x = make_twin({30, 20}, dtype), index = integers({30, 9}, 20, 5),
               source = make_twin({30, 9}, dtype, {}, Layout::dense, 6);
    check_same("gather", {gather(x.cpu, 1, index.cpu), gather(x.gpu, 1, index.gpu)});
    check_same("scatter_add",
               {scatter_add(x.cpu, 1, index.cpu, source.cpu), scatter_add(x.gpu, 1, index.gpu, source.gpu)});
  }
}

TEST_CASE("rotary has the CPU's bits") {
  for (const DType dtype : kFloats) {
    const DType angles = dtype == DType::f64 ? DType::f64 : DType::f32;
    // Heads that are words of 16 bytes and such that are not, whole and in part, few and more than a thread takes.
    for (const auto& [turned, heads, dim] : {std::tuple(24, 3, 32), std::tuple(64, 14, 64), std::tuple(16, 5, 48)}) {
      CAPTURE(cat(dtype, ' ', heads, " heads of ", dim, ", ", turned, " turned"));
      const RotaryTable cpu = make_rotary_table(40, turned, 10000, kCpu, angles),
                        gpu{to_device(cpu.cos, kGpu), to_device(cpu.sin, kGpu)};
      const Twin x = make_twin({2, 17, heads, dim}, dtype);
      check_same("rotary", {rotary(x.cpu, cpu, 5), rotary(x.gpu, gpu, 5)});
      check_same("rotary inverse", {rotary(x.cpu, cpu, 5, true), rotary(x.gpu, gpu, 5, true)});
    }
  }
}

TEST_CASE("cross entropy of a language model's long rows is the CPU's, row after row, with and without a gradient") {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  // Rows that wait between their two walks in registers; also in shared memory; and those of which a part is read
  // again.
  for (const auto& [rows, classes] :
       {std::pair(short_run() ? 134 : 300, 16384), std::pair(3, 50304), std::pair(3, 60000), std::pair(5, 98304),
        std::pair(140, 151936), std::pair(2, 524296)}) {
    for (const DType dtype : {DType::bf16, DType::f16}) {
      for (const double smoothing : {0.0, 0.1}) {
        CAPTURE(cat(dtype, ' ', rows, " rows of ", classes, ", smoothing ", smoothing));
        const Twin logits = make_twin({rows, classes}, dtype, {false, -8, 8}), targets = integers({rows}, classes, 9);
        const auto everywhere = [](const Twin& twin, std::int64_t row, std::int64_t count, double value) {
          for (const Tensor& x : {twin.cpu, twin.gpu}) {
            const Tensor own = x.narrow(0, row, 1);
            fill(own.ndim() == 1 ? own : own.narrow(1, 0, count), value);
          }
        };
        everywhere(targets, 1, 1, -100);                         // does not count, although
        everywhere(logits, 1, classes, kInf);                    // it overflowed
        if (smoothing == 0) everywhere(logits, 0, 9000, -kInf);  // masked: whole words of threads
        everywhere(targets, 0, 1, static_cast<double>(classes - 1));
        const CrossEntropyOptions options{-100, smoothing, Reduction::sum};
        const CrossEntropy cpu = cross_entropy(logits.cpu, targets.cpu, options, true),
                           gpu = cross_entropy(logits.gpu, targets.gpu, options, true);
        check_same("loss", {cpu.loss, gpu.loss}, {2, 1e-6});
        check_same("gradient", {cpu.gradient, gpu.gradient}, {2, 1e-9});
        check_same("loss without a gradient",
                   {to_device(gpu.loss, kCpu), cross_entropy(logits.gpu, targets.gpu, options).loss});
      }
    }
  }
}

TEST_CASE("cross entropy is the CPU's, and a target out of range shows as NaN") {
  for (const DType dtype : kFloats) {
    for (const std::int64_t classes : {5, 1000, 50257}) {
      const Twin logits = make_twin({6, classes}, dtype, {false, -8, 8});
      Twin targets = integers({6}, classes, 9);
      fill(targets.cpu.narrow(0, 2, 1), -100);
      fill(targets.gpu.narrow(0, 2, 1), -100);
      const CrossEntropyOptions options{-100, 0.1, Reduction::mean};
      const CrossEntropy cpu = cross_entropy(logits.cpu, targets.cpu, options, true),
                         gpu = cross_entropy(logits.gpu, targets.gpu, options, true);
      check_same(cat("loss ", dtype, ' ', classes), {cpu.loss, gpu.loss}, {2, 1e-6});
      check_same(cat("gradient ", dtype, ' ', classes), {cpu.gradient, gpu.gradient},
                 {2, dtype == DType::f64 ? 1e-12 : 1e-6});
    }
  }
  const Tensor outside = full({1}, 7, DType::i64, kGpu);
  const CrossEntropy result = cross_entropy(Tensor::zeros({1, 3}, DType::f32, kGpu), outside, {}, true);
  CHECK(std::isnan(result.loss.item()));
  for (const float value : result.gradient.to_vector<float>()) CHECK(std::isnan(value));
}
