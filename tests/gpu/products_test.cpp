// Matrix products, convolutions, activations and pooling on the GPU against the CPU's results, at sizes and layouts
// that the case tables of tests/ops do not reach: model-sized layers, many matrices, odd addresses, several blocks of
// pixels.
//
// What may differ, and by how much: sums of f32 meet in another order (2e-5 of numbers near 1, one unit in the last
// place of 16 bits); activations of 16 bits go through the GPU's own exponential (one unit). Activations of f32 have
// the CPU's bits.
#include <thread>
#include <tuple>

#include <doctest/doctest.h>

#include "core/ops/activation.h"
#include "core/ops/cast.h"
#include "core/ops/conv.h"
#include "core/ops/elementwise.h"
#include "core/ops/fp8_matmul.h"
#include "core/ops/matmul.h"
#include "core/ops/pool.h"
#include "tests/gpu/same_bits.h"
#include "tests/support/long_run.h"

using namespace castor;
using namespace castor::test;

namespace {

constexpr DType kFloats[] = {DType::f32, DType::bf16, DType::f16, DType::f64};
constexpr Activation kActivations[] = {Activation::relu, Activation::gelu_tanh, Activation::gelu_erf, Activation::silu};

/// Of sums of some hundred products of numbers in [-1, 1].
Tolerance of_sums(DType dtype) {
  return {dtype == DType::f32 || dtype == DType::f64 ? 0 : 1, dtype == DType::f64 ? 1e-12 : 2e-5};
}

/// Of activations and their slopes.
Tolerance of_activations(DType dtype) {
  if (dtype == DType::f64) return {0, 1e-12};
  return dtype == DType::f32 ? Tolerance{} : Tolerance{1, 4e-6};
}

Twin units(const Shape& shape, DType dtype, std::uint64_t seed, Layout layout = Layout::dense) {
  return make_twin(shape, dtype, {false, -1, 1}, layout, seed);
}

/// f of both sides.
template <class F>
Twin both(const F& f) {
  return {f(true), f(false)};
}

const Tensor& side(const Twin& twin, bool on_cpu) { return on_cpu ? twin.cpu : twin.gpu; }

}  // namespace

TEST_CASE("layers of a model's size are the CPU's, forward and backward") {
  for (const DType dtype : kFloats) {
    for (const auto& [rows, in, out] : {std::tuple(200, 256, 384), std::tuple(65, 129, 67), std::tuple(1, 768, 50)}) {
      const std::string what = cat(dtype, " [", rows, ",", in, "] to ", out);
      const Twin x = units({rows, in}, dtype, 1), weight = units({out, in}, dtype, 2), bias = units({out}, dtype, 3),
                 dy = units({rows, out}, dtype, 4);
      check_same("linear " + what,
                 both([&](bool cpu) { return linear(side(x, cpu), side(weight, cpu), side(bias, cpu)); }),
                 of_sums(dtype));
      const LinearGradients cpu = linear_backward(clone(dy.cpu), x.cpu, weight.cpu, {}, Activation::none),
                            gpu = linear_backward(clone(dy.gpu), x.gpu, weight.gpu, {}, Activation::none);
      check_same("dx " + what, {cpu.x, gpu.x}, of_sums(dtype));
      check_same("dweight " + what, {cpu.weight, gpu.weight}, of_sums(dtype));
      check_same("dbias " + what, {cpu.bias, gpu.bias}, of_sums(dtype));
    }
  }
}

TEST_CASE("operands at odd addresses, transposed ones and many matrices multiply like the CPU's") {
  for (const DType dtype : kFloats) {
    const Twin a = map(units({40, 131}, dtype, 1), [](const Tensor&x) { return x.narrow(1, 1, 128); }),
               b = map(units({129, 72}, dtype, 2), [](const Tensor&x) { return x.narrow(0, 1, 128); }),
               bias = map(units({73}, dtype, 3), [](const Tensor&x) { return x.narrow(0, 1, 72); });
    check_same(cat("odd addresses ", dtype),
               both([&](bool cpu) { return matmul(side(a, cpu), side(b, cpu), side(bias, cpu)); }), of_sums(dtype));
    const Twin left = units({6, 64, 40}, dtype, 4), right = units({6, 56, 64}, dtype, 5);
    check_same(cat("transposed ", dtype), both([&](bool cpu) {
                 return matmul(side(left, cpu).transpose(1, 2), side(right, cpu).transpose(1, 2));
               }),
               of_sums(dtype));
    check_same(cat("repeated ", dtype), both([&](bool cpu) {
                 return matmul(side(left, cpu).transpose(1, 2), side(right, cpu).narrow(0, 2, 1).transpose(1, 2));
               }),
               of_sums(dtype));
  }
  const Twin a = units({33000, 2, 3}, DType::f32, 6), b = units({33000, 3, 2}, DType::f32, 7);
  check_same("33000 matrices", both([&](bool cpu) { return matmul(side(a, cpu), side(b, cpu)); }), of_sums(DType::f32));
}

TEST_CASE("products on the GPU give the same bits each time and from any thread") {
  const int repeats = short_run() ? 1 : 5;
  const Twin x = units({512, 768}, DType::bf16, 1), weight = units({3072, 768}, DType::bf16, 2),
             bias = units({3072}, DType::bf16, 3);
  const std::vector<BFloat16> want = linear(x.gpu, weight.gpu, bias.gpu).to_vector<BFloat16>();
  std::vector<std::vector<BFloat16>> got(4);
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < got.size(); ++i) {
    threads.emplace_back([&, i] {
      for (int repeat = 0; repeat < repeats; ++repeat)
        got[i] = linear(x.gpu, weight.gpu, bias.gpu).to_vector<BFloat16>();
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& values : got) {
    REQUIRE(values.size() == want.size());
    CHECK(std::memcmp(values.data(), want.data(), want.size() * sizeof(BFloat16)) == 0);
  }
}

TEST_CASE("gradients of a layer have the same bits each time") {
  const int repeats = short_run() ? 1 : 5;
  for (const DType dtype : {DType::bf16, DType::f16}) {
    for (const auto& [rows, in, out] :
         {std::tuple(4096, 1600, 4800), std::tuple(8192, 768, 768), std::tuple(96, 64, 40)}) {
      if (short_run() && rows > 4096) continue;
      CAPTURE(cat(dtype, " [", rows, ",", in, "] to ", out));
      const Twin x = units({rows, in}, dtype, 1), weight = units({out, in}, dtype, 2),
                 dy = units({rows, out}, dtype, 4);
      const auto gradients = [&] { return linear_backward(clone(dy.gpu), x.gpu, weight.gpu, {}, Activation::none); };
      const LinearGradients first = gradients();
      for (int repeat = 0; repeat < repeats; ++repeat) {
        const LinearGradients again = gradients();
        check_same("dweight", {to_device(first.weight, kCpu), again.weight});
        check_same("dbias", {to_device(first.bias, kCpu), again.bias});
      }
    }
  }
}

TEST_CASE("a linear layer in fp8 gives the same bits each time, and the CPU's up to the order of its sums") {
  const auto layer = [](const Twin& x, const Twin& weight, const Twin& dy, bool on_cpu) {
    const Fp8Tensor x8 = fp8_quantise(side(x, on_cpu), DType::f8e4m3, {true, true}),
                    w8 = fp8_quantise(side(weight, on_cpu), DType::f8e4m3, {true, true}),
                    g8 = fp8_quantise(side(dy, on_cpu), DType::f8e5m2, {true, true});
    return std::vector<Tensor>{fp8_matmul({x8.values, x8.scale}, {w8.values, w8.scale}, DType::bf16),
                               fp8_matmul({g8.values, g8.scale}, {w8.transposed, w8.scale}, DType::bf16),
                               fp8_matmul({g8.transposed, g8.scale}, {x8.transposed, x8.scale}, DType::bf16)};
  };
  for (const auto& [rows, in, out] : {std::tuple(512, 768, 384), std::tuple(1024, 160, 640), std::tuple(100, 72, 50)}) {
    CAPTURE(cat("[", rows, ",", in, "] to ", out));
    const Twin x = units({rows, in}, DType::bf16, 1), weight = units({out, in}, DType::bf16, 2),
               dy = units({rows, out}, DType::bf16, 3);
    const std::vector<Tensor> cpu = layer(x, weight, dy, true), gpu = layer(x, weight, dy, false),
                              again = layer(x, weight, dy, false);
    for (std::size_t i = 0; i < cpu.size(); ++i) {
      // The tensor units keep some 13 bits of a running sum before it goes to f32; these reach 16: 2e-3 for each of
      // the few additions between.
      check_same(cat("product ", i), {cpu[i], gpu[i]}, {1, 8e-3});
      check_same(cat("again ", i), {to_device(gpu[i], kCpu), again[i]});
    }
  }
}

TEST_CASE("a step of a linear layer allocates on meta what it allocates on the GPU") {
  const Device meta = make_meta({DeviceType::cuda, "h100", 0});
  const auto peaks = [&](Device device) {
    const Tensor x = Tensor::zeros({64, 96}, DType::bf16, device),
                 weight = Tensor::zeros({80, 96}, DType::bf16, device), bias = Tensor::zeros({80}, DType::bf16, device);
    allocator(device).reset_peaks();
    const MemoryStats before = allocator(device).stats();
    Tensor saved;
    const Tensor y = linear(x, weight, bias, Activation::gelu_tanh, &saved);
    linear_backward(Tensor::zeros({64, 80}, DType::bf16, device), x, weight, saved, Activation::gelu_tanh);
    const MemoryStats after = allocator(device).stats();
    return std::pair(after.peak_total - before.current_total,
                     after.peak[static_cast<std::size_t>(Category::workspace)]);
  };
  const auto on_gpu = peaks(kGpu), on_meta = peaks(meta);
  CHECK(on_gpu.first == on_meta.first);
  CHECK(on_gpu.second == on_meta.second);
}

TEST_CASE("activations and their gradients are the CPU's for rows of every length and address") {
  for (const DType dtype : kFloats) {
    for (const Shape& shape : {Shape{1, 1}, Shape{700, 1}, Shape{33, 7}, Shape{130, 64}, Shape{300, 769},
                               Shape{70, 3072}, Shape{2, 20000}}) {
      const Twin x = make_twin(shape, dtype, {false, -6, 6}), dy = units(shape, dtype, 2);
      for (const Activation activation : kActivations) {
        const std::string what = cat("activation ", static_cast<int>(activation), ' ', dtype, shape);
        check_same(what, both([&](bool cpu) { return activate(side(x, cpu), activation, true); }),
                   of_activations(dtype));
        for (const bool needs_bias : {true, false}) {
          const auto cpu = bias_backward(clone(dy.cpu), x.cpu, activation, needs_bias),
                     gpu = bias_backward(clone(dy.gpu), x.gpu, activation, needs_bias);
          check_same("dx of " + what, {cpu.first, gpu.first}, of_activations(dtype));
          if (needs_bias) check_same("dbias of " + what, {cpu.second, gpu.second}, of_sums(dtype));
        }
      }
      check_same(cat("dbias ", dtype, shape),
                 {bias_backward(dy.cpu, {}, Activation::none, true).second,
                  bias_backward(dy.gpu, {}, Activation::none, true).second},
                 of_sums(dtype));
    }
    // A start that is no multiple of 16 bytes.
    const auto shifted = [](const Twin& twin) {
      return map(twin, [](const Tensor& x) { return x.narrow(0, 1, 40 * 64).reshape({40, 64}); });
    };
    const Twin x = shifted(make_twin({40 * 64 + 1}, dtype, {false, -6, 6})),
               dy = shifted(units({40 * 64 + 1}, dtype, 2));
    const auto cpu = bias_backward(dy.cpu, x.cpu, Activation::silu, true),
               gpu = bias_backward(dy.gpu, x.gpu, Activation::silu, true);
    check_same(cat("odd addresses ", dtype), {cpu.first, gpu.first}, of_activations(dtype));
    check_same(cat("odd addresses, dbias ", dtype), {cpu.second, gpu.second}, of_sums(dtype));
  }
}

TEST_CASE("activations of extreme numbers are the CPU's") {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    const Twin x = make_twin({64, 512}, dtype, {true, -100, 100}), dy = units({64, 512}, dtype, 2);
    for (const Activation activation : kActivations) {
      const std::string what = cat("activation ", static_cast<int>(activation), ' ', dtype);
      check_same(what, both([&](bool cpu) { return activate(side(x, cpu), activation, true); }), of_activations(dtype));
    }
  }
}

TEST_CASE("convolutions of several blocks of pixels are the CPU's, forward and backward") {
  const ConvGeometry geometry{{1, 1}, {1, 1}, {1, 1}, 1}, strided{{2, 2}, {1, 1}, {1, 1}, 2};
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const ConvGeometry& g : {geometry, strided}) {
      const std::string what = cat(dtype, " stride ", g.stride[0]);
      const Twin x = units({17, 32, 64, 64}, dtype, 1), weight = units({16, 32 / g.groups, 3, 3}, dtype, 2),
                 bias = units({16}, dtype, 3);
      const Twin y = both([&](bool cpu) { return conv2d(side(x, cpu), side(weight, cpu), side(bias, cpu), g); });
      check_same("conv2d " + what, y, of_sums(dtype));
      Twin dy = units(y.cpu.shape(), dtype, 4);
      const LinearGradients cpu = conv2d_backward(dy.cpu, x.cpu, weight.cpu, {}, g, Activation::none),
                            gpu = conv2d_backward(dy.gpu, x.gpu, weight.gpu, {}, g, Activation::none);
      check_same("dx " + what, {cpu.x, gpu.x}, of_sums(dtype));
      // Sums of 69,632 products.
      check_same("dweight " + what, {cpu.weight, gpu.weight}, {of_sums(dtype).ulps, 2e-4});
    }
  }
}

TEST_CASE("pooling on the GPU has the CPU's bits") {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    const Twin x = units({3, 40, 33, 21}, dtype, 1);
    for (const PoolGeometry& g :
         {PoolGeometry{}, PoolGeometry{{3, 3}, {2, 2}, {1, 1}}, PoolGeometry{{5, 3}, {1, 2}, {2, 0}}}) {
      Twin indices;
      const Twin y{max_pool2d(x.cpu, g, &indices.cpu), max_pool2d(x.gpu, g, &indices.gpu)};
      check_same("max", y);
      check_same("positions", indices);
      const Twin dy = units(y.cpu.shape(), dtype, 2);
      check_same("max backward", {max_pool2d_backward(dy.cpu, indices.cpu, x.cpu.shape(), g),
                                  max_pool2d_backward(dy.gpu, indices.gpu, x.cpu.shape(), g)});
      check_same("average", {avg_pool2d(x.cpu, g), avg_pool2d(x.gpu, g)});
      check_same("average backward",
                 {avg_pool2d_backward(dy.cpu, x.cpu.shape(), g), avg_pool2d_backward(dy.gpu, x.cpu.shape(), g)});
    }
    check_same("adaptive", {adaptive_avg_pool2d(x.cpu, {4, 5}), adaptive_avg_pool2d(x.gpu, {4, 5})});
  }
}
