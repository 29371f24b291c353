// How strided operands are walked: the merging of axes, the cutting into parts, and the division that GPU kernels use
// for it.
#include "core/ops/strided_plan.h"

#include <vector>

#include <doctest/doctest.h>

#include "core/ops/fast_divisor.h"

using namespace castor;

namespace {

/// Marks every element that the plan's walk over one operand reaches.
void mark(const StridedPlan<1>& plan, std::int64_t offset, std::vector<int>& seen) {
  std::int64_t count = 1;
  for (int i = 0; i < plan.ndim; ++i) count *= plan.size[i];
  for (std::int64_t k = 0; k < count; ++k) {
    std::int64_t at = offset, rest = k;
    for (int i = plan.ndim - 1; i >= 0; --i) {
      at += rest % plan.size[i] * plan.stride[0][i];
      rest /= plan.size[i];
    }
    ++seen[static_cast<std::size_t>(at)];
  }
}

}  // namespace

TEST_CASE("dense axes merge and the result's densest axis becomes the innermost") {
  const Tensor x = Tensor::empty({3, 4, 5}, DType::f32), row = Tensor::empty({5}, DType::f32);
  const StridedPlan<2> dense({x.view(), x.view()});
  CHECK(dense.ndim == 1);
  CHECK(dense.inner() == 60);
  const StridedPlan<2> broadcast({row.expand({3, 4, 5}).view(), x.view()});
  CHECK(broadcast.ndim == 2);
  CHECK(broadcast.size[0] == 12);
  CHECK(broadcast.stride[0][0] == 0);
  const StridedPlan<2> permuted({x.permute({2, 0, 1}).view(), x.permute({2, 0, 1}).view()});
  CHECK(permuted.ndim == 1);
  CHECK(permuted.stride[1][0] == 1);
  const StridedPlan<1> scalar({Tensor::empty({}, DType::f32).view()});
  CHECK(scalar.ndim == 1);
  CHECK(scalar.inner() == 1);
  CHECK(StridedPlan<1>({Tensor::empty({3, 0}, DType::f32).view()}).is_empty);
}

TEST_CASE("parts of a plan cover it once and keep their size") {
  const Tensor base = Tensor::empty({6, 7, 20}, DType::u8);
  for (const Tensor& x :
       {base, base.narrow(2, 0, 13), base.permute({1, 0, 2}).narrow(0, 1, 5), base.narrow(0, 0, 1).narrow(1, 0, 1)}) {
    for (const std::int64_t width : {1, 4}) {
      for (const std::int64_t most : {1, 2, 7, 50, 1000}) {
        std::vector<int> seen(static_cast<std::size_t>(base.numel()), 0);
        const StridedPlan<1> plan({x.view()});
        const std::int64_t from_start[1] = {x.offset()};
        for_each_part(plan, from_start, width, most, [&](const StridedPlan<1>& part, const std::int64_t(&offsets)[1]) {
          CHECK(part.groups(width) <= most);
          if (plan.ndim == 1) CHECK((offsets[0] - x.offset()) % width == 0);
          mark(part, offsets[0], seen);
        });
        std::vector<int> wanted(seen.size(), 0);
        mark(plan, x.offset(), wanted);
        CHECK(seen == wanted);
      }
    }
  }
}

TEST_CASE("fast division is exact over its whole range") {
  constexpr std::uint32_t kLimit = std::uint32_t{1} << 31;
  std::vector<std::uint32_t> divisors = {
      1,         2, 3, 5, 7, 10, 641, 1000, 65535, 65536, 65537, 715827883, kLimit / 2 - 1, kLimit / 2, kLimit / 2 + 1,
      kLimit - 1};
  for (std::uint32_t i = 0; i < 2000; ++i) divisors.push_back(1 + (i * 2654435761u) % (kLimit - 1));
  std::uint32_t wrong = 0;
  for (const std::uint32_t divisor : divisors) {
    const FastDivisor fast(divisor);
    const auto check = [&](std::uint32_t dividend) {
      wrong += dividend < kLimit && fast.quotient(dividend) != dividend / divisor;
    };
    for (std::uint32_t i = 0; i < 300; ++i) check((i * 2246822519u) >> 1);
    for (std::uint64_t multiple = divisor; multiple < kLimit;
         multiple += divisor + (std::uint64_t{kLimit / 97} / divisor) * divisor) {
      check(static_cast<std::uint32_t>(multiple - 1));
      check(static_cast<std::uint32_t>(multiple));
      check(static_cast<std::uint32_t>(multiple + 1));
    }
    check(0);
    check(kLimit - 1);
  }
  CHECK(wrong == 0);
}
