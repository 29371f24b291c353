// What the case tables of tests/ops are too small and too general to reach in attention's CUDA kernels: the tiles and
// the warps, at sizes around their blocks, with grouped heads, causal cuts either way and packed views, and heads of
// any size by rows, against the CPU's f64 kernels on the same rounded operands; cuDNN's kernels the same way, where
// there are any.
//
// Delicate: errors are measured over the whole result (norm of the difference over the norm), because single sums
// cancel; every result is poisoned first, so that what no thread wrote shows as NaN.
#include "core/ops/attention.h"

#include <cmath>
#include <limits>
#include <tuple>

#include <doctest/doctest.h>

#include "core/device/caching_allocator.h"
#include "core/ops/attention_cudnn_cuda.h"
#include "core/ops/attention_kernels.h"
#include "core/ops/attention_slopes.h"
#include "core/ops/cast.h"
#include "core/ops/elementwise.h"
#include "core/ops/random.h"
#include "core/ops/workspace.h"
#include "tests/gpu/same_bits.h"
#include "tests/support/long_run.h"

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
    {1, 2100, 150, 1, 1, true}, {1, 2050, 330, 1, 1, false}, {58, 70, 70, 14, 7, true},
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

/// Forward and backward by the kernels in force, twice, against the CPU's in f64.
///   floor  of check_near, for dq and dk
void check_near_f64(const Case& c, const Operands& x, const std::string& what, DType dtype, double allowed,
                    double floor) {
  AttentionOptions options;
  options.causal = c.is_causal;
  const AttentionResult got = attention(x.q.gpu, x.k.gpu, x.v.gpu, options);
  const AttentionResult want = attention(wide(x.q.cpu), wide(x.k.cpu), wide(x.v.cpu), options);
  check_near(what + "out", got.out, want.out, allowed);
  const std::vector<double> lse = values_of(got.lse), lse_wanted = values_of(want.lse);
  double worst = 0;  // of what is allowed: 1e-4, or four times f32's rounding where that is more
  for (std::size_t i = 0; i < lse.size(); ++i) {
    const double bound = std::isinf(lse_wanted[i]) ? 1e-4 : std::max(1e-4, 4 * 0x1p-24 * std::abs(lse_wanted[i]));
    if (lse[i] != lse_wanted[i]) worst = std::max(worst, std::abs(lse[i] - lse_wanted[i]) / bound);
    if (std::isnan(lse[i])) worst = HUGE_VAL;
  }
  CHECK_MESSAGE(worst < 1, what, "lse: largest difference ", worst, " of what is allowed");

  const auto backward = [&] {
    const AttentionGradients into{poisoned(x.q.gpu.shape(), dtype), poisoned(x.k.gpu.shape(), dtype),
                                  poisoned(x.v.gpu.shape(), dtype)};
    return attention_backward(x.q.gpu, x.k.gpu, x.v.gpu, got, x.dout.gpu, options, into);
  };
  const AttentionGradients g = backward(), again = backward();
  const AttentionGradients g_wanted =
      attention_backward(wide(x.q.cpu), wide(x.k.cpu), wide(x.v.cpu), want, wide(x.dout.cpu), options);
  check_near(what + "dq", g.dq, g_wanted.dq, 2 * allowed, floor);
  check_near(what + "dk", g.dk, g_wanted.dk, 2 * allowed, floor);
  check_near(what + "dv", g.dv, g_wanted.dv, 2 * allowed);
  check_equal(what + "out again", got.out, attention(x.q.gpu, x.k.gpu, x.v.gpu, options).out);
  check_equal(what + "dq again", g.dq, again.dq);
  check_equal(what + "dk again", g.dk, again.dk);
  check_equal(what + "dv again", g.dv, again.dv);
  if (attention_kernels() != AttentionKernels::own_kept) return;
  const AttentionKernelScope twice(AttentionKernels::own_twice);
  const AttentionGradients made_twice = backward();
  check_near(what + "dq, scores' gradients made twice", made_twice.dq, g_wanted.dq, 2 * allowed, floor);
  check_equal(what + "dk, scores' gradients made twice", made_twice.dk, g.dk);
  check_equal(what + "dv, scores' gradients made twice", made_twice.dv, g.dv);
}

void check_near_f64(const Case& c, std::int64_t dim, DType dtype, double allowed) {
  // With one key, the gradients of scores are differences of equal numbers.
  const double floor = c.keys == 1 ? 1.0 : 1e-30;
  check_near_f64(c, operands(c, dim, dtype), name_of(c, dim, dtype), dtype, allowed, floor);
}

/// Whether there are cuDNN's kernels to try; if not, says why.
bool has_library() {
  if (!attention_library(kGpu).empty()) return true;
  MESSAGE("skipped: this build, machine or GPU has no cuDNN for attention");
  return false;
}

/// What the contract hands to kernels, for questions about them.
AttentionArgs forward_args(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionResult& result,
                           bool is_causal) {
  return {q.view(), k.view(), v.view(), View{}, result.out.view(), result.lse.view(), View{}, 0.125, is_causal};
}

}  // namespace

TEST_CASE("attention in tiles is near the f64 result, forward and backward, and the same in every run") {
  const AttentionKernelScope own(AttentionKernels::own_kept);
  for (const DType dtype : {DType::bf16, DType::f16}) {
    const double allowed = dtype == DType::bf16 ? 6e-3 : 1e-3;
    for (const std::int64_t dim : {std::int64_t{64}, std::int64_t{128}}) {
      for (const Case& c : kCases) {
        check_near_f64(c, dim, dtype, allowed);
      }
    }
  }
}

TEST_CASE("attention by warps is near the f64 result at every head size it takes, and the same in every run") {
  const AttentionKernelScope warps(AttentionKernels::own_warps);
  for (const std::int64_t dim : {8, 32, 40, 64, 80, 96, 128}) {
    for (const Case& c : kCases) {
      if (short_run() && (dim % 32 != 0 || c.queries >= 200 || c.keys > 300)) continue;
      check_near_f64(c, dim, DType::bf16, 6e-3);
      if (dim == 40 || dim == 128) check_near_f64(c, dim, DType::f16, 1e-3);
    }
  }
}

TEST_CASE("keys beyond the last add nothing, however unlikely the others are") {
  for (const auto& [kernels, is_causal] :
       {std::pair(AttentionKernels::own_kept, false), std::pair(AttentionKernels::own_kept, true),
        std::pair(AttentionKernels::own_warps, false), std::pair(AttentionKernels::own_warps, true)}) {
    const AttentionKernelScope own(kernels);
    const Case c{2, 150, 150, 2, 2, is_causal};
    Operands x = operands(c, 64, DType::bf16);
    // Scores of about -800: a probability of e^800 for a key of zeros, which is what lies beyond.
    x.q = make_twin(x.q.cpu.shape(), DType::bf16, {false, 8, 12}, Layout::dense, 1);
    x.k = make_twin(x.k.cpu.shape(), DType::bf16, {false, -10.25, -9.75}, Layout::dense, 2);
    // Such keys are nearly equal, and dq a difference of what they give.
    check_near_f64(c, x, name_of(c, 64, DType::bf16), DType::bf16, 6e-3, 1.0);
  }
}

TEST_CASE("heads whose scores' gradients do not fit into the workspace together have theirs kept in turns") {
  if (short_run()) return;  // hundreds of megabytes, and kernels that other cases launch
  for (const auto& [batch, length, heads, key_heads] : {std::tuple(20, 1024, 32, 32), std::tuple(4, 2048, 64, 16)}) {
    CAPTURE(length);
    const std::int64_t at_a_time =
        heads_at_a_time(SlopeBlocks(length, length, true), std::int64_t{batch} * key_heads, heads / key_heads);
    REQUIRE(at_a_time > 0);
    REQUIRE(at_a_time < batch * key_heads);
    const auto random = [&](std::int64_t count, std::uint64_t key) {
      const Tensor x = Tensor::empty({batch, length, count, 64}, DType::bf16, kGpu);
      fill_normal(x, {key, 3});
      return x;
    };
    const Tensor q = random(heads, 1), k = random(key_heads, 2), v = random(key_heads, 3), dout = random(heads, 4);
    AttentionOptions options;
    options.causal = true;
    const AttentionResult result = attention(q, k, v, options);
    const auto backward = [&](AttentionKernels kernels) {
      const AttentionKernelScope scope(kernels);
      return attention_backward(
          q, k, v, result, dout, options,
          {poisoned(q.shape(), DType::bf16), poisoned(k.shape(), DType::bf16), poisoned(v.shape(), DType::bf16)});
    };
    const AttentionGradients kept = backward(AttentionKernels::own_kept), again = backward(AttentionKernels::own_kept),
                             twice = backward(AttentionKernels::own_twice);
    check_near("dq", kept.dq, twice.dq, 6e-3);
    check_equal("dk", kept.dk, twice.dk);
    check_equal("dv", kept.dv, twice.dv);
    check_equal("dq again", kept.dq, again.dq);
  }
}

TEST_CASE("tiles and warps read packed projections and write packed gradients with the bits of separate tensors") {
  AttentionOptions options;
  options.causal = true;
  for (const auto& [kernels, dim] :
       {std::pair(AttentionKernels::own, 64), std::pair(AttentionKernels::own, 128),
        std::pair(AttentionKernels::own_warps, 64), std::pair(AttentionKernels::own, 72)}) {
    const AttentionKernelScope own(kernels);
    CAPTURE(dim);
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
      if (short_run() && dim != 3 && dim != 300) continue;
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

TEST_CASE("attention by cuDNN is near the f64 result, and so is our backward of it, the same in every run") {
  if (!has_library()) return;
  constexpr Case kTaken[] = {
      {2, 128, 128, 2, 2, true},  {2, 257, 257, 4, 2, true},   {1, 130, 300, 3, 1, false},
      {1, 300, 130, 2, 2, false}, {1, 1024, 1024, 2, 2, true}, {3, 64, 64, 2, 2, false},
  };
  const AttentionKernelScope cudnn(AttentionKernels::cudnn);
  for (const DType dtype : {DType::bf16, DType::f16}) {
    for (const std::int64_t dim : {std::int64_t{64}, std::int64_t{128}}) {
      for (const Case& c : kTaken) {
        if (dtype == DType::f16 && c.queries != 257) continue;
        const Operands x = operands(c, dim, dtype);
        const AttentionResult like{Tensor::empty_like(x.q.gpu),
                                   Tensor::empty({c.batch, c.heads, c.queries}, DType::f32, kGpu)};
        const AttentionArgs args = forward_args(x.q.gpu, x.k.gpu, x.v.gpu, like, c.is_causal);
        CHECK_MESSAGE(cuda::cudnn_does({kGpu}, args), name_of(c, dim, dtype), cuda::cudnn_plan_text(kGpu, args));
        check_near_f64(c, dim, dtype, dtype == DType::bf16 ? 6e-3 : 1e-3);
      }
    }
  }
}

TEST_CASE("cuDNN reads packed projections, and gives the same bits also where many blocks read one row") {
  if (!has_library()) return;
  const AttentionKernelScope cudnn(AttentionKernels::cudnn);
  AttentionOptions options;
  for (const bool is_causal : {true, false}) {
    options.causal = is_causal;
    const Tensor packed = make_twin({2, 2048, 3, 8, 64}, DType::bf16, {false, -2, 2}).gpu;
    const Tensor q = packed.select(2, 0), k = packed.select(2, 1), v = packed.select(2, 2);
    const AttentionResult result = attention(q, k, v, options);
    check_equal("of copies", attention(clone(q), clone(k), clone(v), options).out, result.out);
    for (int run = 0; run < 5; ++run) check_equal(cat("run ", run), attention(q, k, v, options).out, result.out);
    const AttentionKernelScope own(AttentionKernels::own);
    const AttentionResult of_own = attention(q, k, v, options);
    check_near("out", result.out, of_own.out, 6e-3);
    check_near("lse", result.lse, of_own.lse, 1e-5);
  }
}

TEST_CASE("cuDNN's attention is recorded and repeated with the bits of single calls") {
  if (!has_library()) return;
  const AttentionKernelScope cudnn(AttentionKernels::cudnn);
  AttentionOptions options;
  options.causal = true;
  const Operands x = operands({2, 384, 384, 4, 4, true}, 64, DType::bf16);
  const AttentionResult single = attention(x.q.gpu, x.k.gpu, x.v.gpu, options);
  AttentionResult recorded;
  std::unique_ptr<Recording> recording;
  allocator(kGpu).release_cached();
  {
    const CachingAllocator::PrivateScope memory(allocator(kGpu));
    REQUIRE(backend(kGpu).begin_recording());
    recorded = attention(x.q.gpu, x.k.gpu, x.v.gpu, options);
    recording = backend(kGpu).end_recording();
  }
  for (int run = 0; run < 2; ++run) {
    fill(recorded.out, HUGE_VAL);
    fill(recorded.lse, HUGE_VAL);
    recording->run();
    check_equal("out", recorded.out, single.out);
    check_equal("lse", recorded.lse, single.lse);
  }
}

TEST_CASE("what cuDNN does not take goes to other kernels, and a plan sees the workspace of what it takes") {
  const auto bytes = [](Device device, std::int64_t queries, std::int64_t dim, DType dtype, bool is_causal) {
    const Tensor q = Tensor::empty({2, queries, 4, dim}, dtype, device),
                 k = Tensor::empty({2, 320, 4, dim}, dtype, device);
    const AttentionResult like{Tensor::empty_like(q), Tensor::empty({2, 4, queries}, DType::f32, device)};
    return workspace_bytes(Cuda{device}, forward_args(q, k, k, like, is_causal));
  };
  const Device planned = make_meta({DeviceType::cuda, "h200", 0});
  const AttentionKernelScope cudnn(AttentionKernels::cudnn);
  // A causal cut that is not the diagonal of a square, heads of 96, f32: never cuDNN's.
  CHECK(bytes(kGpu, 200, 64, DType::bf16, true) == 0);
  CHECK(bytes(kGpu, 320, 96, DType::bf16, true) == 0);
  CHECK(bytes(kGpu, 320, 64, DType::f32, true) == 0);
  if (!has_library()) {
    CHECK(bytes(kGpu, 320, 64, DType::bf16, true) == 0);
    return;
  }
  CHECK(bytes(kGpu, 320, 64, DType::bf16, true) > 0);
  CHECK(bytes(planned, 320, 64, DType::bf16, true) == bytes(kGpu, 320, 64, DType::bf16, true));
}

TEST_CASE("a plan sees the gradients of scores that backward keeps") {
  const auto bytes = [](Device device, std::int64_t length, std::int64_t dim, DType dtype) {
    const Tensor q = Tensor::empty({1, length, 4, dim}, dtype, device);
    const AttentionResult like{Tensor::empty_like(q), Tensor::empty({1, 4, length}, DType::f32, device)};
    return workspace_bytes(Cuda{device},
                           AttentionBackwardArgs{q.view(), q.view(), q.view(), View{}, like.out.view(), like.lse.view(),
                                                 q.view(), q.view(), q.view(), q.view(), View{}, 0.125, true});
  };
  const Device planned = make_meta({DeviceType::cuda, "h200", 0});
  // Two numbers a row, and of each head 16 * 17 / 2 blocks of 8192 bytes.
  constexpr std::size_t kStatistics = std::size_t{4} * 1024 * 8, kKept = std::size_t{4} * 136 * 8192;
  CHECK(bytes(kGpu, 1024, 128, DType::bf16) == kStatistics + kKept);
  CHECK(bytes(planned, 1024, 128, DType::bf16) == kStatistics + kKept);
  CHECK(bytes(planned, 1024, 128, DType::f32) == kStatistics);
  CHECK(bytes(planned, 1024, 64, DType::bf16) == kStatistics);
  CHECK(bytes(planned, 32768, 128, DType::bf16) == 32 * kStatistics);  // 1 GiB a head
}
