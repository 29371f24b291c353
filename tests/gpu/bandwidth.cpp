// How close the kernels that memory binds come to the card's own copy: bytes each must move (every operand once) over
// the median time of several runs, beside a device-to-device copy on the same card.
//
// usage: gpu_bandwidth [short]     needs a GPU; prints a table; `short` ends with activations, convolution and pooling
#include <cstdio>
#include <functional>
#include <utility>

#include "core/ops/activation.h"
#include "core/ops/cast.h"
#include "core/ops/conv.h"
#include "core/ops/elementwise.h"
#include "core/ops/fp8.h"
#include "core/ops/gated.h"
#include "core/ops/index.h"
#include "core/ops/norm.h"
#include "core/ops/optim.h"
#include "core/ops/pool.h"
#include "core/ops/random.h"
#include "core/ops/reduce.h"
#include "core/ops/rotary.h"
#include "core/ops/softmax.h"
#include "tests/gpu/timing.h"

using namespace castor;

namespace {

constexpr Device kGpu = test::kTimedGpu;

double copy_rate = 0;  // GB/s

void report(const char* name, double bytes, const std::function<void()>& work) {
  const double ms = test::median_ms(work), rate = bytes / ms / 1e6;
  if (copy_rate == 0) copy_rate = rate;
  std::printf("%-58s %9.3f ms %8.0f GB/s %6.2f of copy\n", name, ms, rate, rate / copy_rate);
}

Tensor normal(const Shape& shape, DType dtype, std::uint64_t key) {
  const Tensor x = Tensor::empty(shape, dtype, kGpu);
  fill_normal(x, {key, 1});
  return x;
}

double bytes_of(const Tensor& x) { return static_cast<double>(x.numel()) * static_cast<double>(dtype_size(x.dtype())); }

void report_norms(std::int64_t rows, std::int64_t n, DType dtype) {
  const Tensor x = normal({rows, n}, dtype, 1), dy = normal({rows, n}, dtype, 2),
               residual = normal({rows, n}, dtype, 3);
  const Tensor w = normal({n}, dtype, 4), b = normal({n}, dtype, 5);
  const LayerNormed forward = layer_norm(x, w, b);
  const std::string at = cat(" ", dtype, " [", rows, ",", n, "]");
  report(("layer norm" + at).c_str(), 2 * bytes_of(x), [&] { layer_norm(x, w, b); });
  report(("residual + layer norm" + at).c_str(), 4 * bytes_of(x), [&] { layer_norm(x, w, b, 1e-5, residual); });
  report(("layer norm backward" + at).c_str(), 3 * bytes_of(x),
         [&] { layer_norm_backward(x, w, forward.mean, forward.rstd, dy); });
  report(("layer norm backward with dsum" + at).c_str(), 4 * bytes_of(x),
         [&] { layer_norm_backward(x, w, forward.mean, forward.rstd, dy, residual); });
}

void report_rms_norms(std::int64_t rows, std::int64_t n, DType dtype) {
  const Tensor x = normal({rows, n}, dtype, 1), dy = normal({rows, n}, dtype, 2),
               residual = normal({rows, n}, dtype, 3);
  const Tensor w = normal({n}, dtype, 4);
  const LayerNormed forward = rms_norm(x, w);
  const std::string at = cat(" ", dtype, " [", rows, ",", n, "]");
  report(("residual + rms norm" + at).c_str(), 4 * bytes_of(x), [&] { rms_norm(x, w, 1e-6, residual); });
  report(("rms norm backward with dsum" + at).c_str(), 4 * bytes_of(x),
         [&] { layer_norm_backward(x, w, {}, forward.rstd, dy, residual); });
}

void report_activations(std::int64_t rows, std::int64_t n, DType dtype) {
  const Tensor x = normal({rows, n}, dtype, 1), kept = normal({rows, n}, dtype, 2);
  Tensor dy = clone(kept);
  const std::string at = cat(" ", dtype, " [", rows, ",", n, "]");
  for (const auto& [name, activation] :
       {std::pair("relu", Activation::relu), std::pair("gelu_tanh", Activation::gelu_tanh),
        std::pair("gelu_erf", Activation::gelu_erf), std::pair("silu", Activation::silu)}) {
    report((name + at).c_str(), 2 * bytes_of(x), [&, kind = activation] { activate(x, kind, true); });
    report((name + (" with bias backward" + at)).c_str(), 3 * bytes_of(x),
           [&, kind = activation] { dy = bias_backward(std::move(dy), x, kind, true).first; });
    dy = clone(kept);
  }
  report(("bias backward" + at).c_str(), bytes_of(x), [&] { bias_backward(dy, {}, Activation::none, true); });
  report(("gelu_tanh, the unfused op" + at).c_str(), 2 * bytes_of(x), [&] { unary(UnaryOp::gelu_tanh, x); });
}

/// What Qwen2's blocks have besides products, attention and norms.
void report_qwen(std::int64_t rows, std::int64_t hidden, std::int64_t heads, std::int64_t dim) {
  const Tensor packed = normal({rows, 2 * hidden}, DType::bf16, 1), dy = normal({rows, hidden}, DType::bf16, 2);
  const std::string at = cat(" bf16 [", rows, ",2x", hidden, "]");
  report(("swiglu" + at).c_str(), 3 * bytes_of(dy), [&] { gated(packed, Activation::silu); });
  report(("swiglu backward" + at).c_str(), 5 * bytes_of(dy), [&] { gated_backward(dy, packed, Activation::silu); });
  const Tensor x = normal({rows / 1024, 1024, heads, dim}, DType::bf16, 3);
  const RotaryTable table = make_rotary_table(1024, dim, 1e6, kGpu);
  report(cat("rotary bf16 [", rows / 1024, ",1024,", heads, ",", dim, "]").c_str(), 2 * bytes_of(x),
         [&] { rotary_into(x, table, x); });
}

/// What a linear layer's operands cost before its products in 8 bits.
void report_fp8(std::int64_t rows, std::int64_t n) {
  const Tensor x = normal({rows, n}, DType::bf16, 1);
  const std::string at = cat(" bf16 [", rows, ",", n, "]");
  const Tensor scale = fp8_quantise(x, DType::f8e4m3).scale;
  const double values = bytes_of(x) / 2;
  const auto quantise = [&](Fp8Orders orders, const Tensor& known) {
    return [&x, orders, known] { fp8_quantise(x, DType::f8e4m3, orders, known); };
  };
  report(("fp8, scale and both orders" + at).c_str(), 2 * bytes_of(x) + 2 * values, quantise({true, true}, {}));
  report(("fp8 of a known scale, both orders" + at).c_str(), bytes_of(x) + 2 * values, quantise({true, true}, scale));
  report(("fp8 of a known scale, one order" + at).c_str(), bytes_of(x) + values, quantise({true, false}, scale));
  report(("fp8 of a known scale, transposed" + at).c_str(), bytes_of(x) + values, quantise({false, true}, scale));
}

void report_images() {
  const auto square = [](std::int64_t stride, std::int64_t padding) {
    return ConvGeometry{{stride, stride}, {padding, padding}, {1, 1}, 1};
  };
  const Tensor rows = normal({64, 56, 56, 64}, DType::bf16, 1), weight = normal({64, 64, 3, 3}, DType::bf16, 2);
  const Tensor x = rows.permute({0, 3, 1, 2});
  const double bytes = 2 * bytes_of(x);
  report("conv 3x3 bf16 [64,64,56,56] to 64", bytes, [&] { conv2d(x, weight, {}, square(1, 1)); });
  report("conv 3x3 backward, dx", bytes, [&] {
    conv2d_backward(x, x, weight, {}, square(1, 1), Activation::none, {true, false, false});
  });
  report("conv 3x3 backward, dweight", bytes, [&] {
    conv2d_backward(x, x, weight, {}, square(1, 1), Activation::none, {false, true, false});
  });
  const PoolGeometry pool{{3, 3}, {2, 2}, {1, 1}};
  Tensor indices;
  const Tensor y = max_pool2d(x, pool, &indices);
  report("max pool 3x3, stride 2, bf16 [64,64,56,56]", bytes_of(x) + bytes_of(y) + bytes_of(indices),
         [&] { max_pool2d(x, pool, &indices); });
  report("max pool backward", bytes_of(x) + bytes_of(y) + bytes_of(indices),
         [&] { max_pool2d_backward(y, indices, x.shape(), pool); });
}

}  // namespace

int main(int count, char**) {
  std::printf("%s\n", test::gpu_name());
  {
    const Tensor x = normal({std::int64_t{1} << 29}, DType::f32, 9), y = Tensor::empty_like(x);
    report("device copy of 2 GiB", 2 * bytes_of(x), [&] { copy_into(x, y); });
    // As much as a layer's norm reads: what the start and the end of a kernel leave of the whole rate.
    const Tensor some = x.narrow(0, 0, 12 << 20), other = y.narrow(0, 0, 12 << 20);
    report("device copy of 48 MiB", 2 * bytes_of(some), [&] { copy_into(some, other); });
  }
  report_activations(32768, 3072, DType::bf16);
  report_activations(16384, 6400, DType::bf16);
  report_activations(16384, 3072, DType::f32);
  for (const std::int64_t n : {768, 2304}) {
    const Tensor dy = normal({32768, n}, DType::bf16, 1);
    report(cat("bias backward bf16 [32768,", n, "]").c_str(), bytes_of(dy),
           [&] { bias_backward(dy, {}, Activation::none, true); });
  }
  report_qwen(16384, 8960, 14, 128);
  report_qwen(32768, 4864, 16, 64);
  report_fp8(16384, 1600);
  report_fp8(16384, 6400);
  report_fp8(6400, 1600);
  report_images();
  if (count > 1) return 0;
  report_norms(32768, 768, DType::bf16);
  report_norms(16384, 1600, DType::bf16);
  report_rms_norms(16384, 1536, DType::bf16);
  report_norms(32768, 1024, DType::f32);
  for (const std::int64_t classes : {50304, 151936}) {
    const std::int64_t rows = classes == 50304 ? 16384 : 8192;
    const Tensor logits = normal({rows, classes}, DType::bf16, 1);
    Tensor targets = Tensor::empty({rows}, DType::f32, kGpu);
    fill_uniform(targets, {3, 3}, 0, static_cast<double>(classes));
    targets = cast(targets, DType::i64);
    const std::string at = cat(" bf16 [", rows, ",", classes, "]");
    report(("cross entropy with gradient" + at).c_str(), 2 * bytes_of(logits),
           [&] { cross_entropy(logits, targets, {}, true); });
    report(("cross entropy without gradient" + at).c_str(), bytes_of(logits), [&] { cross_entropy(logits, targets); });
    if (classes != 50304) continue;
    report("softmax bf16 [16384,50304]", 2 * bytes_of(logits), [&] { softmax(logits); });
    report("softmax bf16 [.., 1024]", 2 * bytes_of(logits.narrow(1, 0, 49152)), [&] {
      softmax(Tensor(logits.storage(), {rows * 48, 1024}, {1024, 1}, 0, DType::bf16));
    });
  }
  {
    const std::int64_t count = std::int64_t{1} << 28;
    const Tensor p = normal({count}, DType::f32, 1), m = Tensor::zeros({count}, DType::f32, kGpu),
                 v = Tensor::zeros({count}, DType::f32, kGpu), g = normal({count}, DType::bf16, 2),
                 copy = Tensor::empty({count}, DType::bf16, kGpu);
    const AdamScalars scalars = adam_scalars({}, 1);
    report("adamw, f32 states, bf16 gradient and copy, 2^28", 6 * bytes_of(p) + 2 * bytes_of(g), [&] {
      adam_step({p, g, copy}, m, v, {}, scalars);
    });
    const BlockSquares squares{g, Tensor::empty({block_count(count)}, DType::f64, kGpu)};
    report("squares by block, bf16 2^28", bytes_of(g), [&] { block_squares({&squares, 1}); });
    report("sum of all, f32 2^28", bytes_of(p), [&] { sum(p); });
    const Tensor rows = Tensor(g.storage(), {count / 1024, 1024}, {1024, 1}, 0, DType::bf16);
    report("sum over rows (bias gradient), bf16 [2^18,1024]", bytes_of(rows), [&] { sum(rows, {0}); });
    const Tensor batch = Tensor(g.storage(), {32, 1024 * 768}, {1024 * 768, 1}, 0, DType::bf16);
    report("sum over a batch (position gradient), bf16 [32,2^20*3/4]", bytes_of(batch), [&] { sum(batch, {0}); });
    report("sum over columns, bf16 [2^18,1024]", bytes_of(rows), [&] { sum(rows, {1}); });
    report("dropout bf16 2^28", 2 * bytes_of(g), [&] { dropout(g, {1, 2}, 0.1); });
  }
  {
    const std::int64_t tokens = 32768, vocabulary = 50304, width = 768;
    const Tensor table = normal({vocabulary, width}, DType::bf16, 1), dy = normal({tokens, width}, DType::bf16, 2);
    Tensor ids = Tensor::empty({tokens}, DType::f32, kGpu);
    fill_uniform(ids, {3, 3}, 0, 4000);
    ids = cast(ids, DType::i64);
    report("embedding, 32768 of [50304,768] bf16", 2 * bytes_of(dy), [&] { embedding(table, ids); });
    report("embedding backward (all rows written)", bytes_of(dy) + bytes_of(table),
           [&] { embedding_backward(dy, ids, vocabulary); });
  }
  return 0;
}
