// Attention against a naive f64 reference that stores all scores: masks, causal cuts, grouped heads, odd sizes, packed
// views.
//
// Delicate: sizes go over the kernels' blocks (64 queries, 96 keys), and head sizes that need padding come beside those
// that do not.
#include "core/ops/attention.h"

#include <cmath>

#include <doctest/doctest.h>

#include "autograd/graph.h"
#include "autograd/ops/attention.h"
#include "core/base/cpu_isa.h"
#include "core/base/parallel.h"
#include "core/ops/cast.h"
#include "tests/support/long_run.h"
#include "tests/support/op_check.h"

namespace castor {
namespace {

using namespace castor::test;

const std::vector<DType> kAllFloats = {DType::f32, DType::bf16, DType::f16, DType::f64};

/// The options with their mask on the operands' device.
AttentionOptions on_device(AttentionOptions options, Device device) {
  if (options.mask.defined()) options.mask = to_device(options.mask, device);
  return options;
}

/// All scores, then rows of weights, then sums: nothing in blocks.
Arrays reference_attention(const Array& q, const Array& k, const Array& v, const AttentionOptions& options) {
  const std::int64_t batch = q.shape[0], queries = q.shape[1], heads = q.shape[2], dim = q.shape[3];
  const std::int64_t keys = k.shape[1], key_heads = k.shape[2];
  const double scale = options.scale != 0 ? options.scale : 1 / std::sqrt(static_cast<double>(dim));
  Array out(q.shape), lse({batch, heads, queries});
  Array mask;
  if (options.mask.defined()) mask = to_array(options.mask).broadcast_to({batch, heads, queries, keys});
  const bool is_bool = options.mask.defined() && options.mask.dtype() == DType::boolean;
  std::vector<double> weight(static_cast<std::size_t>(keys));
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t h = 0; h < heads; ++h) {
      const std::int64_t key_head = h / (heads / key_heads);
      for (std::int64_t i = 0; i < queries; ++i) {
        const std::int64_t row = (b * heads + h) * queries + i;
        const std::size_t q_at = static_cast<std::size_t>(((b * queries + i) * heads + h) * dim);
        const auto key_at = [&](std::int64_t j) {
          return static_cast<std::size_t>(((b * keys + j) * key_heads + key_head) * dim);
        };
        double sum = 0;
        for (std::int64_t j = 0; j < keys; ++j) {
          double score = 0;
          for (std::size_t d = 0; d < static_cast<std::size_t>(dim); ++d)
            score += scale * q.values[q_at + d] * k.values[key_at(j) + d];
          bool is_visible = !options.causal || j <= i + keys - queries;
          if (options.mask.defined()) {
            const double added = mask[row * keys + j];
            is_visible = is_visible && (!is_bool || added != 0);
            score += is_bool ? 0 : added;
          }
          sum += weight[static_cast<std::size_t>(j)] = is_visible ? std::exp(score) : 0;
        }
        lse[row] = std::log(sum);
        for (std::int64_t j = 0; j < keys && sum > 0; ++j) {
          const double share = weight[static_cast<std::size_t>(j)] / sum;
          for (std::size_t d = 0; d < static_cast<std::size_t>(dim); ++d)
            out.values[q_at + d] += share * v.values[key_at(j) + d];
        }
      }
    }
  }
  return {out, lse};
}

struct Sizes {
  std::int64_t batch, queries, keys, heads, key_heads, dim;
};

OpCase case_of(const Sizes& s) {
  return {cat(s.queries, " queries, ", s.keys, " keys, ", s.heads, "/", s.key_heads, " heads of ", s.dim),
          {{{s.batch, s.queries, s.heads, s.dim}, -1.5, 1.5},
           {{s.batch, s.keys, s.key_heads, s.dim}, -1.5, 1.5},
           {{s.batch, s.keys, s.key_heads, s.dim}}}};
}

void check_attention(const char* name, const AttentionOptions& options, const std::vector<Sizes>& sizes,
                     bool on_meta = true) {
  OpCheck check;
  check.op = name;
  check.dtypes = kAllFloats;
  check.slack = 4;
  check.scale = 0.25;  // averages of values in [-1, 1) cancel
  check.any_threads = true;
  check.on_meta = on_meta;  // a mask lies on the CPU
  check.run = [&](const Tensors& in) {
    return Tensors{attention(in[0], in[1], in[2], on_device(options, in[0].device())).out};
  };
  check.reference = [&](const Arrays& in) { return Arrays{reference_attention(in[0], in[1], in[2], options)[0]}; };
  std::vector<OpCase> cases;
  for (const Sizes& s : sizes) cases.push_back(case_of(s));
  check_op(check, cases);
}

TensorBackward backward_with(const AttentionOptions& options) {
  return [options](const Tensors& in, const Tensors& dout) {
    const AttentionOptions here = on_device(options, in[0].device());
    const AttentionResult forward = attention(in[0], in[1], in[2], here);
    const AttentionGradients g = attention_backward(in[0], in[1], in[2], forward, dout[0], here);
    return Tensors{g.dq, g.dk, g.dv};
  };
}

void check_attention_gradient(const char* name, const AttentionOptions& options, const std::vector<Sizes>& sizes) {
  GradientCheck check;
  check.op = name;
  check.slack = 4;
  check.scale = 0.25;
  check.forward = [&](const Tensors& in) {
    return Tensors{attention(in[0], in[1], in[2], on_device(options, in[0].device())).out};
  };
  check.backward = backward_with(options);
  std::vector<OpCase> cases;
  for (const Sizes& s : sizes) cases.push_back(case_of(s));
  check_gradient(check, cases);
}

Tensor random_mask(const Shape& shape, std::uint64_t seed) {
  Array mask = random_array(shape, seed, 0, 1);
  for (double& value : mask.values) value = value < 0.7 ? 1 : 0;
  return make_tensor(mask, DType::boolean);
}

}  // namespace

TEST_CASE("attention matches its f64 reference at sizes within and across blocks") {
  check_attention(
      "attention", {},
      {{2, 5, 7, 3, 3, 8}, {1, 70, 101, 2, 2, 16}, {1, 1, 1, 1, 1, 1}, {1, 3, 2, 2, 1, 5}, {1, 65, 193, 1, 1, 32}});
}

TEST_CASE("causal attention is aligned at the end and skips what nobody sees") {
  AttentionOptions options;
  options.causal = true;
  check_attention("causal attention", options,
                  {{1, 9, 9, 2, 2, 8},
                   {1, 130, 130, 2, 2, 16},
                   {2, 67, 200, 1, 1, 20},
                   {1, 1, 40, 2, 2, 8},
                   {1, 200, 200, 1, 1, 48}});
}

TEST_CASE("causal queries before the first key give zeros") {
  AttentionOptions options;
  options.causal = true;
  check_attention("causal with more queries than keys", options, {{1, 70, 3, 2, 2, 8}, {1, 200, 20, 1, 1, 16}});
}

TEST_CASE("grouped queries share keys and values") {
  AttentionOptions options;
  options.causal = true;
  check_attention("grouped attention", options, {{2, 33, 33, 6, 2, 16}, {1, 80, 80, 4, 1, 8}});
}

TEST_CASE("attention takes bool and additive masks of every broadcast shape") {
  std::vector<Shape> shapes = {{2, 3, 70, 110}, {110}};
  if (!short_run()) shapes.insert(shapes.end(), {{2, 1, 1, 110}, {1, 3, 70, 1}, {70, 110}});
  for (const Shape& shape : shapes) {
    AttentionOptions options;
    options.mask = random_mask(shape, 5);
    check_attention("bool mask", options, {{2, 70, 110, 3, 3, 8}}, false);
    options.mask = make_tensor(random_array(shape, 6, -2, 2), DType::f32);
    check_attention("additive mask", options, {{2, 70, 110, 3, 3, 8}}, false);
  }
  AttentionOptions options;
  options.causal = true;
  options.mask = random_mask({2, 1, 70, 70}, 7);
  check_attention("bool mask and causal", options, {{2, 70, 70, 3, 3, 8}}, false);
}

TEST_CASE("a row whose keys are all masked gives zeros, and so do its gradients") {
  const Tensor q = make_tensor(random_array({1, 3, 1, 8}, 1), DType::f32),
               k = make_tensor(random_array({1, 4, 1, 8}, 2), DType::f32);
  const Tensor v = make_tensor(random_array({1, 4, 1, 8}, 3), DType::f32);
  AttentionOptions options;
  for (const bool is_bool : {true, false}) {
    Array mask({3, 4}, is_bool ? 1.0 : 0.0);
    for (std::int64_t j = 0; j < 4; ++j) mask.at({1, j}) = is_bool ? 0 : -HUGE_VAL;
    options.mask = make_tensor(mask, is_bool ? DType::boolean : DType::f32);
    const AttentionResult result = attention(q, k, v, options);
    const AttentionGradients g = attention_backward(q, k, v, result, q, options);
    for (const Tensor& tensor : {result.out, g.dq}) {
      for (const double value : to_array(tensor.narrow(1, 1, 1)).values) CHECK(value == 0);
    }
    for (const Tensor& tensor : {result.out, g.dq, g.dk, g.dv}) {
      for (const double value : to_array(tensor).values) CHECK(std::isfinite(value));
    }
    CHECK(to_array(result.lse)[1] == -HUGE_VAL);
  }
}

TEST_CASE("the logsumexp is the logarithm of the sum of exponentials of scores") {
  AttentionOptions options;
  options.causal = true;
  options.scale = 0.3;
  for (const DType dtype : {DType::f32, DType::f64}) {
    const Array q = random_array({1, 80, 2, 16}, 1, -2, 2), k = random_array({1, 80, 2, 16}, 2, -2, 2);
    const Tensor tq = make_tensor(q, dtype), tk = make_tensor(k, dtype);
    const Arrays want = reference_attention(to_array(tq), to_array(tk), to_array(tk), options);
    check_close(cat("lse ", dtype), attention(tq, tk, tk, options).lse, want[1], dtype, tolerance(dtype), 1);
  }
}

TEST_CASE("large scores neither overflow nor lose the largest") {
  const Tensor q = make_tensor(Array({1, 2, 1, 1}, std::vector<double>{300, -300}), DType::f32);
  const Tensor k = make_tensor(Array({1, 2, 1, 1}, std::vector<double>{300, -300}), DType::f32);
  const Tensor v = make_tensor(Array({1, 2, 1, 1}, std::vector<double>{5, 7}), DType::f32);
  const Array out = to_array(attention(q, k, v).out);
  CHECK(out[0] == 5);
  CHECK(out[1] == 7);
}

TEST_CASE("attention's gradients match central differences and each other across dtypes") {
  check_attention_gradient("attention gradient", {}, {{1, 5, 7, 2, 2, 4}, {1, 70, 101, 1, 1, 16}});
  AttentionOptions causal;
  causal.causal = true;
  check_attention_gradient("causal gradient", causal,
                           {{1, 130, 130, 1, 1, 16}, {1, 67, 150, 2, 2, 8}, {1, 12, 5, 1, 1, 4}});
  check_attention_gradient("grouped gradient", causal, {{2, 20, 20, 4, 2, 8}});
}

TEST_CASE("attention's gradients match central differences under masks") {
  AttentionOptions options;
  options.mask = random_mask({1, 2, 20, 30}, 8);
  check_attention_gradient("bool mask gradient", options, {{1, 20, 30, 2, 2, 4}});
  options.mask = make_tensor(random_array({30}, 9, -1, 1), DType::f32);
  check_attention_gradient("additive mask gradient", options, {{1, 20, 30, 2, 2, 4}});
}

TEST_CASE("views into a packed projection give the bits of separate tensors, and gradients go into packed views") {
  AttentionOptions options;
  options.causal = true;
  for (const DType dtype : kAllFloats) {
    const Tensor packed = make_tensor(random_array({2, 70, 3, 2, 16}, 1), dtype);
    const Tensor q = packed.select(2, 0), k = packed.select(2, 1), v = packed.select(2, 2);
    const Tensor dout = make_tensor(random_array({2, 70, 2, 16}, 2), dtype);
    const AttentionResult from_views = attention(q, k, v, options),
                          from_copies = attention(clone(q), clone(k), clone(v), options);
    check_same_bits(cat("packed forward, ", dtype), from_views.out, from_copies.out);
    const Tensor into = full(packed.shape(), 7, dtype);
    attention_backward(q, k, v, from_views, dout, options, {into.select(2, 0), into.select(2, 1), into.select(2, 2)});
    const AttentionGradients apart = attention_backward(clone(q), clone(k), clone(v), from_copies, dout, options);
    check_same_bits(cat("packed dq, ", dtype), into.select(2, 0), apart.dq);
    check_same_bits(cat("packed dk, ", dtype), into.select(2, 1), apart.dk);
    check_same_bits(cat("packed dv, ", dtype), into.select(2, 2), apart.dv);
  }
}

TEST_CASE("attention has the same bits with AVX2 and AVX-512, and for any number of threads") {
  AttentionOptions options;
  options.causal = true;
  const CpuIsa before = limit_cpu_isa(CpuIsa::avx2);
  const int threads = num_threads();
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const std::int64_t dim : {std::int64_t{24}, std::int64_t{64}}) {
      const Tensor q = make_tensor(random_array({2, 131, 4, dim}, 1), dtype),
                   k = make_tensor(random_array({2, 131, 2, dim}, 2), dtype);
      const Tensor v = make_tensor(random_array({2, 131, 2, dim}, 3), dtype),
                   dout = make_tensor(random_array({2, 131, 4, dim}, 4), dtype);
      limit_cpu_isa(CpuIsa::avx2);
      set_num_threads(1);
      const AttentionResult narrow = attention(q, k, v, options);
      const AttentionGradients narrow_gradients = attention_backward(q, k, v, narrow, dout, options);
      limit_cpu_isa(CpuIsa::avx512);
      set_num_threads(3);
      const AttentionResult wide = attention(q, k, v, options);
      const AttentionGradients wide_gradients = attention_backward(q, k, v, wide, dout, options);
      check_same_bits("out", wide.out, narrow.out);
      check_same_bits("lse", wide.lse, narrow.lse);
      check_same_bits("dq", wide_gradients.dq, narrow_gradients.dq);
      check_same_bits("dk", wide_gradients.dk, narrow_gradients.dk);
      check_same_bits("dv", wide_gradients.dv, narrow_gradients.dv);
    }
  }
  limit_cpu_isa(before);
  set_num_threads(threads);
}

TEST_CASE("attention's memory is linear in the sequence length") {
  const auto peak_for = [](std::int64_t length) {
    const Device device = make_meta({DeviceType::cpu, "", 0});
    const Tensor packed = Tensor::empty({1, length, 3, 2, 64}, DType::f32, device);
    AttentionOptions options;
    options.causal = true;
    const AttentionResult result = attention(packed.select(2, 0), packed.select(2, 1), packed.select(2, 2), options);
    attention_backward(packed.select(2, 0), packed.select(2, 1), packed.select(2, 2), result, result.out, options);
    return static_cast<double>(allocator(device).stats().peak_total);
  };
  CHECK(peak_for(1 << 16) < 2.1 * peak_for(1 << 15));
}

TEST_CASE("empty batches and sequences give empty results and zero gradients") {
  const Tensor none = Tensor::zeros({0, 4, 2, 8}, DType::f32);
  CHECK(attention(none, none, none).out.shape() == none.shape());
  const Tensor no_queries = Tensor::zeros({1, 0, 2, 8}, DType::f32), keys = Tensor::zeros({1, 4, 2, 8}, DType::f32);
  const AttentionResult result = attention(no_queries, keys, keys);
  const AttentionGradients g = attention_backward(no_queries, keys, keys, result, no_queries);
  for (const double value : to_array(g.dk).values) CHECK(value == 0);
  const AttentionResult no_keys = attention(keys, no_queries, no_queries);
  for (const double value : to_array(no_keys.out).values) CHECK(value == 0);
  CHECK(attention_backward(keys, no_queries, no_queries, no_keys, keys).dk.shape() == no_queries.shape());
}

TEST_CASE("attention of variables propagates to its three inputs") {
  AttentionOptions options;
  options.causal = true;
  GradientCheck check = variable_check("attention of variables", [&](const std::vector<autograd::Variable>& in) {
    return std::vector<autograd::Variable>{autograd::attention(in[0], in[1], in[2], options)};
  });
  check.slack = 4;
  check.scale = 0.25;
  check_gradient(check, {case_of({2, 6, 6, 4, 2, 4})});
}

TEST_CASE("packed attention splits a projection, turns it and gives one gradient") {
  for (const bool turns : {false, true}) {
    for (const DType table_dtype : {DType::f64, DType::f32}) {
      autograd::PackedAttention how;
      how.heads = 4;
      how.key_heads = 2;
      how.options.causal = true;
      if (turns) how.rotary = make_rotary_table(12, 8, 10000, kCpu, table_dtype);
      how.first_position = 3;
      if (!turns && table_dtype == DType::f32) continue;
      GradientCheck check = variable_check("packed attention", [&](const std::vector<autograd::Variable>& in) {
        autograd::PackedAttention here = how;
        if (turns) here.rotary = {to_device(how.rotary.cos, in[0].device()), to_device(how.rotary.sin, in[0].device())};
        return std::vector<autograd::Variable>{autograd::packed_attention(in[0], here)};
      });
      // A table serves f64 or the others: numeric differences with the one, nothing else to compare with.
      check.numeric_dtype = turns ? table_dtype : DType::f64;
      check.dtypes = turns ? std::vector<DType>{} : check.dtypes;
      check.slack = 4;
      check.scale = 0.25;
      check_gradient(check, {{"packed", {{{2, 9, 64}, -1, 1}}}});
    }
  }
}

TEST_CASE("attention refuses what does not fit, saying what came") {
  const auto f32 = [](const Shape& shape) { return Tensor::zeros(shape, DType::f32); };
  const Tensor q = f32({1, 4, 4, 8}), k = f32({1, 6, 2, 8});
  CHECK_THROWS_AS(attention(f32({4, 4, 8}), k, k), ShapeError);
  CHECK_THROWS_AS(attention(q, k, f32({1, 5, 2, 8})), ShapeError);
  CHECK_THROWS_AS(attention(q, f32({2, 6, 2, 8}), f32({2, 6, 2, 8})), ShapeError);
  CHECK_THROWS_AS(attention(q, f32({1, 6, 3, 8}), f32({1, 6, 3, 8})), ShapeError);
  CHECK_THROWS_AS(attention(q, f32({1, 6, 2, 4}), f32({1, 6, 2, 4})), ShapeError);
  CHECK_THROWS_AS(attention(q, cast(k, DType::bf16), k), DTypeError);
  CHECK_THROWS_AS(attention(cast(q, DType::i32), cast(k, DType::i32), cast(k, DType::i32)), DTypeError);
  AttentionOptions options;
  options.mask = f32({3, 6});
  CHECK_THROWS_AS(attention(q, k, k, options), ShapeError);
  options.mask = Tensor::zeros({4, 6}, DType::i32);
  CHECK_THROWS_AS(attention(q, k, k, options), DTypeError);
  const AttentionResult result = attention(q, k, k);
  CHECK_THROWS_AS(attention_backward(q, k, k, result, k), ShapeError);
  CHECK_THROWS_AS(attention_backward(q, k, k, result, q, {}, {f32({1, 4, 8, 4}).transpose(2, 3), {}, {}}), ShapeError);
  CHECK_THROWS_AS(autograd::packed_attention(autograd::Variable(f32({1, 4, 50})), {4, 2, {}, {}, 0}), ShapeError);
  const Device meta = make_meta({DeviceType::cpu, "", 0});
  CHECK_THROWS_AS(attention(Tensor::empty(q.shape(), DType::f32, meta), k, k), DeviceError);
}

}  // namespace castor
