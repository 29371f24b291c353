// What the tests of optimizer steps share: a parameter with its states, the ways to cut it, and the proof that cuts,
// threads and vectors change no bit.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "core/base/parallel.h"
#include "core/ops/cast.h"
#include "core/ops/optim.h"
#include "tests/support/op_check.h"

namespace castor::test {

inline constexpr DType kGradientDTypes[] = {DType::f32, DType::bf16, DType::f16};

/// A parameter with everything an optimizer may keep for it.
struct Whole {
  Tensor parameter, gradient, copy, first, second, third;
};

inline Whole make_whole(std::int64_t count, DType gradient_dtype, DType copy_dtype, std::uint64_t seed) {
  return {make_tensor(random_array({count}, seed), DType::f32),
          make_tensor(random_array({count}, seed + 1), gradient_dtype),
          Tensor::zeros({count}, copy_dtype),
          make_tensor(random_array({count}, seed + 2, -0.1, 0.1), DType::f32),
          make_tensor(random_array({count}, seed + 3, 0, 0.1), DType::f32),
          make_tensor(random_array({count}, seed + 4, 0, 0.1), DType::f32)};
}

inline Whole clone_of(const Whole& x) {
  return {clone(x.parameter), clone(x.gradient), clone(x.copy), clone(x.first), clone(x.second), clone(x.third)};
}

inline Whole range_of(const Whole& x, std::int64_t offset, std::int64_t count) {
  const auto cut = [&](const Tensor& tensor) { return tensor.narrow(0, offset, count); };
  return {cut(x.parameter), cut(x.gradient), cut(x.copy), cut(x.first), cut(x.second), cut(x.third)};
}

inline StepTensors tensors_of(const Whole& x) { return {x.parameter, x.gradient, x.copy}; }

inline void check_same(const std::string& what, const Whole& got, const Whole& want) {
  check_same_bits(what + ": parameter", got.parameter, want.parameter);
  check_same_bits(what + ": copy", got.copy, want.copy);
  check_same_bits(what + ": first state", got.first, want.first);
  check_same_bits(what + ": second state", got.second, want.second);
  check_same_bits(what + ": third state", got.third, want.third);
}

/// Ranges that cover `count` elements, cut at block boundaries in several ways.
inline std::vector<std::vector<std::int64_t>> cuts_of(std::int64_t count) {
  std::vector<std::vector<std::int64_t>> ways = {{}};
  std::vector<std::int64_t> every;
  for (std::int64_t at = kStatisticsBlock; at < count; at += kStatisticsBlock) every.push_back(at);
  ways.push_back(every);
  ways.push_back({kStatisticsBlock});
  ways.push_back({2 * kStatisticsBlock, 5 * kStatisticsBlock, 5 * kStatisticsBlock, 6 * kStatisticsBlock});
  return ways;
}

/// Calls f(offset, count) for the ranges between the cuts, in order.
inline void for_ranges(const std::vector<std::int64_t>& cuts, std::int64_t count,
                       const std::function<void(std::int64_t, std::int64_t)>& f) {
  std::int64_t start = 0;
  for (const std::int64_t cut : cuts) {
    if (cut >= count) break;
    f(start, cut - start);
    start = cut;
  }
  f(start, count - start);
}

/// The step of one optimizer on a whole parameter that is visited in ranges.
using RangedStep = std::function<void(const Whole& whole, const std::vector<std::int64_t>& cuts)>;

inline void check_cuts_and_threads(const std::string& name, std::int64_t count, const RangedStep& step) {
  for (const DType gradient_dtype : kGradientDTypes) {
    const DType copy_dtype = gradient_dtype == DType::f16 ? DType::f16 : DType::bf16;
    const Whole start = make_whole(count, gradient_dtype, copy_dtype, 7);
    const Whole want = clone_of(start);
    step(want, {});
    check_same_bits(name + ": the copy is the parameter, rounded", want.copy, cast(want.parameter, copy_dtype));
    for (const std::vector<std::int64_t>& cuts : cuts_of(count)) {
      const Whole got = clone_of(start);
      const int threads = num_threads();
      set_num_threads(3);
      step(got, cuts);
      set_num_threads(threads);
      check_same(cat(name, ", ", gradient_dtype, ", ", cuts.size(), " cuts"), got, want);
    }
  }
}

}  // namespace castor::test
