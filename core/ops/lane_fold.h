// Folds of a run of numbers into one, with a fixed number of partial results that the compiler keeps in vector
// registers: float addition may not be reordered, so a plain loop would be scalar.
//
// Delicate: the order of additions (32 chains, then halves onto halves) is part of the numerics key and the same for
// every instruction set. Error: a chain of n/32 additions and five more, in units of roundoff.
#pragma once

#include <cstdint>

#include "core/base/host_device.h"

namespace castor {

inline constexpr int kFoldLanes = 32;

/// Folds step(accumulator, i) for i in [0, n), then joins the lanes.
///   identity  what every lane starts with
///   step      (C, std::int64_t) -> C; reads element i
///   join      (C, C) -> C
template <class C, class Step, class Join>
CASTOR_HOST_DEVICE C fold_lanes(std::int64_t n, C identity, Step step, Join join) {
  C lane[kFoldLanes];
  for (int j = 0; j < kFoldLanes; ++j) lane[j] = identity;
  std::int64_t i = 0;
  for (; i + kFoldLanes <= n; i += kFoldLanes) {
    for (int j = 0; j < kFoldLanes; ++j) lane[j] = step(lane[j], i + j);
  }
  for (int j = 0; i + j < n; ++j) lane[j] = step(lane[j], i + j);
  for (int width = kFoldLanes / 2; width > 0; width /= 2) {
    for (int j = 0; j < width; ++j) lane[j] = join(lane[j], lane[j + width]);
  }
  return lane[0];
}

/// The sum of value(i) for i in [0, n).
template <class C, class Value>
CASTOR_HOST_DEVICE C sum_lanes(std::int64_t n, Value value) {
  return fold_lanes<C>(
      n, C(0), [&](C sum, std::int64_t i) { return sum + value(i); }, [](C a, C b) { return a + b; });
}

/// Two sums in one walk: add(i, a, b) adds element i's terms to a and b.
template <class C>
struct SumPair {
  C a, b;
};
template <class C, class Add>
CASTOR_HOST_DEVICE SumPair<C> sum_pair_lanes(std::int64_t n, Add add) {
  C a[kFoldLanes], b[kFoldLanes];
  for (int j = 0; j < kFoldLanes; ++j) a[j] = b[j] = C(0);
  std::int64_t i = 0;
  for (; i + kFoldLanes <= n; i += kFoldLanes) {
    for (int j = 0; j < kFoldLanes; ++j) add(i + j, a[j], b[j]);
  }
  for (int j = 0; i + j < n; ++j) add(i + j, a[j], b[j]);
  for (int width = kFoldLanes / 2; width > 0; width /= 2) {
    for (int j = 0; j < width; ++j) {
      a[j] += a[j + width];
      b[j] += b[j + width];
    }
  }
  return {a[0], b[0]};
}

inline constexpr std::int64_t kSumBlock = 1024;

/// The sum of value(i) for i in [0, n), in C inside blocks of 1024 and in f64 over them.
template <class C, class Value>
CASTOR_HOST_DEVICE double sum_blocks(std::int64_t n, Value value) {
  double total = 0;
  for (std::int64_t begin = 0; begin < n; begin += kSumBlock) {
    const std::int64_t count = n - begin < kSumBlock ? n - begin : kSumBlock;
    total += static_cast<double>(sum_lanes<C>(count, [&](std::int64_t i) { return value(begin + i); }));
  }
  return total;
}

/// As sum_blocks, for two sums.
template <class C, class Add>
CASTOR_HOST_DEVICE SumPair<double> sum_pair_blocks(std::int64_t n, Add add) {
  SumPair<double> total{0, 0};
  for (std::int64_t begin = 0; begin < n; begin += kSumBlock) {
    const std::int64_t count = n - begin < kSumBlock ? n - begin : kSumBlock;
    const SumPair<C> part = sum_pair_lanes<C>(count, [&](std::int64_t i, C& a, C& b) { add(begin + i, a, b); });
    total.a += static_cast<double>(part.a);
    total.b += static_cast<double>(part.b);
  }
  return total;
}

/// The larger one; NaN if one is NaN.
template <class C>
CASTOR_HOST_DEVICE C larger(C a, C b) {
  return b > a || b != b ? b : a;
}

/// The largest value(i) for i in [0, n), n >= 1; NaN if one is NaN.
template <class C, class Value>
CASTOR_HOST_DEVICE C max_lanes(std::int64_t n, Value value) {
  return fold_lanes<C>(
      n, value(0), [&](C best, std::int64_t i) { return larger(best, value(i)); },
      [](C a, C b) { return larger(a, b); });
}

}  // namespace castor
