// How each reduction joins elements inside a block (f32 lanes or columns) and blocks (f64).
//
// Delicate: a partial result is one number or, for logsumexp and variance, two: (maximum, sum of exponentials relative
// to it) and (mean, sum of squared differences). Joining the latter needs both counts. Source: Chan, Golub & LeVeque,
// "Algorithms for computing the sample variance", The American Statistician 37, 1983.
#pragma once

#include <cmath>
#include <limits>

#include "core/base/math.h"
#include "core/ops/lane_fold.h"
#include "core/ops/reduce.h"
#include "core/ops/reduce_walk.h"

namespace castor::reduction {

/// Rows that a loop across columns takes at once, so that it loads and stores accumulators a quarter as often.
inline constexpr std::int64_t kRowsAtOnce = 4;

/// a[c] = f(a[c], row r's number c, c) for all rows in order and c < columns.
///   row_at(r, k)  row r's numbers, valid until the next call with the same k < kRowsAtOnce
template <class C, class RowAt, class F>
void fold_columns(RowAt row_at, std::int64_t rows, std::int64_t columns, C* a, F f) {
  std::int64_t r = 0;
  for (; r + kRowsAtOnce <= rows; r += kRowsAtOnce) {
    const C *p = row_at(r, 0), *q = row_at(r + 1, 1), *s = row_at(r + 2, 2), *t = row_at(r + 3, 3);
#pragma GCC ivdep
    for (std::int64_t c = 0; c < columns; ++c) a[c] = f(f(f(f(a[c], p[c], c), q[c], c), s[c], c), t[c], c);
  }
  for (; r < rows; ++r) {
    const C* p = row_at(r, 0);
#pragma GCC ivdep
    for (std::int64_t c = 0; c < columns; ++c) a[c] = f(a[c], p[c], c);
  }
}

/// What ops of one number have in common: `map` an element, then add or choose.
template <ReduceOp kOp>
struct Simple {
  static constexpr bool kPaired = false;
  static constexpr bool kChooses = kOp == ReduceOp::max || kOp == ReduceOp::min || kOp == ReduceOp::norm_inf;

  template <class C>
  static constexpr C start() {
    if constexpr (kOp == ReduceOp::max) return -std::numeric_limits<C>::infinity();
    if constexpr (kOp == ReduceOp::min) return std::numeric_limits<C>::infinity();
    return C(0);
  }
  template <class C>
  static CASTOR_HOST_DEVICE C map(C x) {
    if constexpr (kOp == ReduceOp::norm1 || kOp == ReduceOp::norm_inf) return x < C(0) ? -x : x;
    if constexpr (kOp == ReduceOp::norm2) return x * x;
    return x;
  }
  template <class C>
  static CASTOR_HOST_DEVICE C join(C a, C b) {
    if constexpr (kOp == ReduceOp::max || kOp == ReduceOp::norm_inf) return larger(a, b);
    if constexpr (kOp == ReduceOp::min) return b < a || b != b ? b : a;
    return a + b;
  }

  static constexpr Partial identity() { return {start<double>(), 0}; }
  static CASTOR_HOST_DEVICE void merge(double& a, double&, double, double part_a, double, double) {
    a = join(a, part_a);
  }
  static CASTOR_HOST_DEVICE double finish(const Partial& total, double count, double) {
    if constexpr (kOp == ReduceOp::mean) return total.a / count;
    if constexpr (kOp == ReduceOp::norm2) return std::sqrt(total.a);
    return total.a;
  }

  template <class C>
  static Partial row(const C* x, std::int64_t n) {
    const auto step = [x](C sum, std::int64_t i) { return join(sum, map(x[i])); };
    return {static_cast<double>(fold_lanes<C>(n, start<C>(), step, [](C p, C q) { return join(p, q); })), 0};
  }

  /// Results go to a[count]; `row_at` as fold_columns.
  template <class C, class RowAt>
  static void columns(RowAt row_at, std::int64_t rows, std::int64_t count, C* a, C*) {
    for (std::int64_t c = 0; c < count; ++c) a[c] = start<C>();
    fold_columns<C>(row_at, rows, count, a, [](C sum, C x, std::int64_t) { return join(sum, map(x)); });
  }
};

struct LogSumExp {
  static constexpr bool kPaired = true;
  template <class C>
  static CASTOR_HOST_DEVICE C shifted_exp(C x, C max) {
    return x == max ? C(1) : math::exp(x - max);  // infinities must not meet in a difference
  }
  static constexpr Partial identity() { return {-HUGE_VAL, 0}; }
  static CASTOR_HOST_DEVICE void merge(double& a, double& b, double, double part_a, double part_b, double) {
    const double max = larger(a, part_a);
    b = b * shifted_exp(a, max) + part_b * shifted_exp(part_a, max);
    a = max;
  }
  static CASTOR_HOST_DEVICE double finish(const Partial& total, double, double) {
    return total.a == -HUGE_VAL ? -HUGE_VAL : total.a + std::log(total.b);
  }

  template <class C>
  static Partial row(const C* x, std::int64_t n) {
    const C max = max_lanes<C>(n, [x](std::int64_t i) { return x[i]; });
    const C sum = sum_lanes<C>(n, [x, max](std::int64_t i) { return shifted_exp(x[i], max); });
    return {static_cast<double>(max), static_cast<double>(sum)};
  }

  template <class C, class RowAt>
  static void columns(RowAt row_at, std::int64_t rows, std::int64_t count, C* a, C* b) {
    Simple<ReduceOp::max>::columns<C>(row_at, rows, count, a, b);
    for (std::int64_t c = 0; c < count; ++c) b[c] = C(0);
    fold_columns<C>(row_at, rows, count, b, [a](C sum, C x, std::int64_t c) { return sum + shifted_exp(x, a[c]); });
  }
};

struct Variance {
  static constexpr bool kPaired = true;
  static constexpr Partial identity() { return {}; }
  static CASTOR_HOST_DEVICE void merge(double& a, double& b, double count, double part_a, double part_b,
                                       double part_count) {
    const double weight = part_count / (count + part_count), difference = part_a - a;
    a += difference * weight;
    b += part_b + difference * difference * (count * weight);
  }
  static CASTOR_HOST_DEVICE double finish(const Partial& total, double count, double correction) {
    return count == 0 ? std::numeric_limits<double>::quiet_NaN() : total.b / std::max(count - correction, 0.0);
  }

  template <class C>
  static Partial row(const C* x, std::int64_t n) {
    const C mean = sum_lanes<C>(n, [x](std::int64_t i) { return x[i]; }) / static_cast<C>(n);
    const C squares = sum_lanes<C>(n, [x, mean](std::int64_t i) { return (x[i] - mean) * (x[i] - mean); });
    return {static_cast<double>(mean), static_cast<double>(squares)};
  }

  template <class C, class RowAt>
  static void columns(RowAt row_at, std::int64_t rows, std::int64_t count, C* a, C* b) {
    Simple<ReduceOp::sum>::columns<C>(row_at, rows, count, a, b);
    for (std::int64_t c = 0; c < count; ++c) {
      a[c] /= static_cast<C>(rows);
      b[c] = C(0);
    }
    fold_columns<C>(row_at, rows, count, b, [a](C sum, C x, std::int64_t c) { return sum + (x - a[c]) * (x - a[c]); });
  }
};

/// One operand under an Op: the Source of reduce_by_plan.
template <class Op, class T>
struct SingleSource {
  using Value = Computed<T>;
  const T* x;

  Partial row(std::int64_t offset, const ReducePiece& piece, std::int64_t) const {
    Value buffer[ReducePlan::kPiece];
    return Op::row(gathered(x + offset, piece, buffer), piece.numel());
  }
  void columns(const std::int64_t* offsets, std::int64_t rows, std::int64_t stride, std::int64_t count, std::int64_t,
               std::int64_t, Value* a, Value* b) const {
    Value buffers[kRowsAtOnce][ReducePlan::kColumnTile];
    const auto row_at = [&](std::int64_t r, int k) { return gathered(x + offsets[r], stride, count, buffers[k]); };
    Op::template columns<Value>(row_at, rows, count, a, b);
  }
};

}  // namespace castor::reduction
