// What the case tables of tests/ops are too small and too general to reach in attention's CUDA kernels: the tiles, at
// sizes around their blocks, with grouped heads, causal cuts either way and packed views, and heads of any size by
// rows, against the CPU's f64 kernels on the same rounded operands.
//
// Delicate: errors are measured over the whole result (norm of the difference over the norm), because single sums
// cancel; every result is poisoned first, so that what no thread wrote shows as NaN.
#include "core/ops/attention.h"

#include <cmath>
#include <limits>

#include <doctest/doctest.h>

#include "core/ops/cast.h"
#include "core/ops/elementwise.h"
#include "tests/gpu/same_bits.h"

using namespace castor;
using namespace castor::test;

namespace {

struct Case {
  std::int64_t batch, queries, keys, heads, key_heads;
  bool is_causal;
};

constexpr Case kCases[] = {
    {2, 1, 1, 1, 1, true},      {1, 64, 64, 2, 2, false},    {1, 128, 128, 2, 2, true}, {3, 200, 200, 2, 2, true},
    {2, 257, 257, 4, 2, true},  {1, 130, 300, 3, 1, false},  {1, 300, 130, 2, 2, true}, {1, 77, 500, 2, 1, true},
    {1, 513, 385, 6, 2, false}, {1, 577, 577, 1, 1, true},   {5, 63, 191, 2, 2, false}, {1, 640, 1, 2, 2, false},
    {1, 2100, 150, 1, 1, true}, {1, 2050, 330, 1, 1, false},
};

Tensor poisoned(const Shape& shape, DType dtype) {
  return full(shape, std::numeric_limits<double>::quiet_NaN(), dtype, kGpu);
}

std::vector<double> values_of(const Tensor& x) { return cast(to_device(x, kCpu), DType::f64).to_vector<double>(); }

/// The norm of the difference over the norm of what is wanted, or over `floor` times the root of their count; NaN if an
/// element is.
void check_near(const std::string& what, const Tensor& got, const Tensor& want, double allowed, double floor = 1e-30) {
  const std::vector<double> a = values_of(got), b = values_of(want);
  REQUIRE(a.size() == b.size());
  double difference = 0, norm = 0, worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
    worst = std::isnan(a[i]) ? a[i] : std::max(worst, std::abs(a[i] - b[i]));
  }
  const double count = static_cast<double>(std::max<std::size_t>(a.size(), 1));
  const double typical = std::max(std::sqrt(norm / count), floor), error = std::sqrt(difference / count) / typical;
  CHECK_MESSAGE(error <= allowed, what, ": error ", error, ", allowed ", allowed, ", norm ", std::sqrt(norm));
  CHECK_MESSAGE(worst <= 60 * allowed * typical, what, ": largest difference ", worst, ", typical ", typical);
}

/// One doctest check that two results on the GPU have the same bits.
void check_equal(const std::string& what, const Tensor& a, const Tensor& b) {
  check_same(what, {to_device(clone(a), kCpu), clone(b)});
}

struct Operands {
  Twin q, k, v, dout;
};

Operands operands(const Case& c, std::int64_t dim, DType dtype) {
  const auto draw = [&](std::int64_t length, std::int64_t heads, double range, std::uint64_t seed) {
    return make_twin({c.batch, length, heads, dim}, dtype, {false, -range, range}, Layout::dense, seed);
  };
  return {draw(c.queries, c.heads, 2, 1), draw(c.keys, c.key_heads, 2, 2), draw(c.keys, c.key_heads, 1, 3),
          draw(c.queries, c.heads, 1, 4)};
}

Tensor wide(const Tensor& x) { return cast(x, DType::f64); }

std::string name_of(const Case& c, std::int64_t dim, DType dtype) {
  return cat(dtype, " batch ", c.batch, ", ", c.queries, " queries, ", c.keys, " keys, ", c.heads, "/", c.key_heads,
             " heads of ", dim, c.is_causal ? ", causal " : " ");
}

}  // namespace

TEST_CASE("attention in tiles is near the f64 result, forward and backward, and the same in every run") {
  for (const DType dtype : {DType::bf16, DType::f16}) {
    const double allowed = dtype == DType::bf16 ? 6e-3 : 1e-3;
    for (const std::int64_t dim : {std::int64_t{64}, std::int64_t{128}}) {
      for (const Case& c : kCases) {
        const std::string what = name_of(c, dim, dtype);
        const Operands x = operands(c, dim, dtype);
        AttentionOptions options;
        options.causal = c.is_causal;
        const AttentionResult got = attention(x.q.gpu, x.k.gpu, x.v.gpu, options);
        const AttentionResult want = attention(wide(x.q.cpu), wide(x.k.cpu), wide(x.v.cpu), options);
        check_near(what + "out", got.out, want.out, allowed);
        const std::vector<double> lse = values_of(got.lse), lse_wanted = values_of(want.lse);
        double worst = 0;
        for (std::size_t i = 0; i < lse.size(); ++i) {
          if (lse[i] != lse_wanted[i]) worst = std::max(worst, std::abs(lse[i] - lse_wanted[i]));
          if (std::isnan(lse[i])) worst = HUGE_VAL;
        }
        CHECK_MESSAGE(worst < 1e-4, what, "lse: largest difference ", worst);

        const auto backward = [&] {
          const AttentionGradients into{poisoned(x.q.gpu.shape(), dtype), poisoned(x.k.gpu.shape(), dtype),
                                        poisoned(x.v.gpu.shape(), dtype)};
          return attention_backward(x.q.gpu, x.k.gpu, x.v.gpu, got, x.dout.gpu, options, into);
        };
        const AttentionGradients g = backward(), again = backward();
        const AttentionGradients g_wanted =
            attention_backward(wide(x.q.cpu), wide(x.k.cpu), wide(x.v.cpu), want, wide(x.dout.cpu), options);
        // With one key, the gradients of scores are differences of equal numbers.
        const double floor = c.keys == 1 ? 1.0 : 1e-30;
        check_near(what + "dq", g.dq, g_wanted.dq, 2 * allowed, floor);
        check_near(what + "dk", g.dk, g_wanted.dk, 2 * allowed, floor);
        check_near(what + "dv", g.dv, g_wanted.dv, 2 * allowed);
        check_equal(what + "out again", got.out, attention(x.q.gpu, x.k.gpu, x.v.gpu, options).out);
        check_equal(what + "dq again", g.dq, again.dq);
        check_equal(what + "dk again", g.dk, again.dk);
        check_equal(what + "dv again", g.dv, again.dv);
      }
    }
  }
}

TEST_CASE("tiles read packed projections and write packed gradients with the bits of separate tensors") {
  AttentionOptions options;
  options.causal = true;
  for (const std::int64_t dim : {std::int64_t{64}, std::int64_t{128}}) {
    const Tensor packed = make_twin({2, 300, 3, 4, dim}, DType::bf16, {false, -2, 2}).gpu;
    const Tensor dout = make_twin({2, 300, 4, dim}, DType::bf16, {}, Layout::dense, 2).gpu;
    const Tensor q = packed.select(2, 0), k = packed.select(2, 1), v = packed.select(2, 2);
    const AttentionResult views = attention(q, k, v, options);
    const AttentionResult copies = attention(clone(q), clone(k), clone(v), options);
    check_equal("packed out", views.out, copies.out);
    check_equal("packed lse", views.lse, copies.lse);
    const Tensor into = poisoned(packed.shape(), DType::bf16);
    attention_backward(q, k, v, views, dout, options, {into.select(2, 0), into.select(2, 1), into.select(2, 2)});
    const AttentionGradients apart = attention_backward(clone(q), clone(k), clone(v), copies, dout, options);
    check_equal("packed dq", clone(into.select(2, 0)), apart.dq);
    check_equal("packed dk", clone(into.select(2, 1)), apart.dk);
    check_equal("packed dv", clone(into.select(2, 2)), apart.dv);
  }
}

TEST_CASE("layouts that the copy engine cannot read give the same numbers another way") {
  AttentionOptions options;
  options.causal = true;
  const Tensor odd = make_twin({1, 150, 2, 65}, DType::bf16, {false, -2, 2}).gpu;
  const Tensor x = odd.narrow(3, 0, 64), dout = make_twin({1, 150, 2, 64}, DType::bf16, {}, Layout::dense, 2).gpu;
  const AttentionResult rows = attention(x, x, x, options), tiles = attention(clone(x), clone(x), clone(x), options);
  check_near("out", rows.out, tiles.out, 6e-3);
  const AttentionGradients by_rows = attention_backward(x, x, x, rows, dout, options);
  const AttentionGradients by_tiles = attention_backward(clone(x), clone(x), clone(x), tiles, dout, options);
  check_near("dq", by_rows.dq, by_tiles.dq, 1.2e-2);
  check_near("dk", by_rows.dk, by_tiles.dk, 1.2e-2);
  check_near("dv", by_rows.dv, by_tiles.dv, 1.2e-2);
}

TEST_CASE("rows of any length pass through shared memory in pieces, under a mask and a causal cut") {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f64}) {
    const double allowed = dtype == DType::f32 ? 2e-6 : dtype == DType::f64 ? 1e-13 : 4e-3;
    for (const std::int64_t dim : {std::int64_t{3}, std::int64_t{128}, std::int64_t{130}, std::int64_t{300}}) {
      const Operands x = operands({1, 40, 70, 2, 1, true}, dim, dtype);
      const Twin mask = make_twin({2, 40, 70}, DType::f32, {false, -1, 1}, Layout::dense, 9);
      const auto how = [](const Tensor& added) {
        AttentionOptions options;
        options.causal = true;
        options.mask = added;
        return options;
      };
      const AttentionResult got = attention(x.q.gpu, x.k.gpu, x.v.gpu, how(mask.gpu));
      const AttentionResult want = attention(wide(x.q.cpu), wide(x.k.cpu), wide(x.v.cpu), how(mask.cpu));
      const std::string what = cat(dtype, " heads of ", dim, " ");
      check_near(what + "out", got.out, want.out, allowed);
      check_near(what + "lse", got.lse, want.lse, dtype == DType::f64 ? 1e-13 : 2e-6);
      const AttentionGradients into{poisoned(x.q.gpu.shape(), dtype), poisoned(x.k.gpu.shape(), dtype),
                                    poisoned(x.v.gpu.shape(), dtype)};
      const AttentionGradients g = attention_backward(x.q.gpu, x.k.gpu, x.v.gpu, got, x.dout.gpu, how(mask.gpu), into);
      const AttentionGradients g_wanted =
          attention_backward(wide(x.q.cpu), wide(x.k.cpu), wide(x.v.cpu), want, wide(x.dout.cpu), how(mask.cpu));
      check_near(what + "dq", g.dq, g_wanted.dq, 2 * allowed);
      check_near(what + "dk", g.dk, g_wanted.dk, 2 * allowed);
      check_near(what + "dv", g.dv, g_wanted.dv, 2 * allowed);
    }
  }
}
