// Reductions on the CPU, in two walks: by rows where the innermost axis in memory is reduced (lanes along it), by
// columns where it is kept (one accumulator a column). Both sum pieces in f32 and meet in f64, in an order that the
// shape alone decides.
//
// Delicate: a partial result is one number (`a`) or, for logsumexp and variance, two: (maximum, sum of exponentials
// relative to it) and (mean, sum of squared differences); joining two of the latter needs both counts (Chan, Golub &
// LeVeque 1983).
#include <cmath>
#include <limits>

#include "core/base/math.h"
#include "core/base/parallel.h"
#include "core/ops/lane_fold.h"
#include "core/ops/reduce.h"
#include "core/ops/reduce_plan.h"

namespace castor {
namespace {

constexpr std::int64_t kGrainElements = 16384;

template <class T>
using Computed = decltype(load(T{}));

struct Partial {
  double a = 0;
  double b = 0;
  double count = 0;  ///< elements so far
};

/// What ops of one number have in common: `map` an element, then add or choose.
template <ReduceOp kOp>
struct Simple {
  static constexpr bool kPaired = false;
  static constexpr bool kChooses = kOp == ReduceOp::max || kOp == ReduceOp::min || kOp == ReduceOp::norm_inf;

  template <class C>
  static CASTOR_HOST_DEVICE C start() {
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

  static Partial identity() { return {start<double>(), 0, 0}; }
  static void merge(Partial& total, const Partial& part) { total.a = join(total.a, part.a); }
  static double finish(const Partial& total, double count, double) {
    if constexpr (kOp == ReduceOp::mean) return total.a / count;
    if constexpr (kOp == ReduceOp::norm2) return std::sqrt(total.a);
    return total.a;
  }

  template <class C>
  static Partial row(const C* x, std::int64_t n) {
    const auto step = [x](C sum, std::int64_t i) { return join(sum, map(x[i])); };
    return {static_cast<double>(fold_lanes<C>(n, start<C>(), step, [](C p, C q) { return join(p, q); })), 0,
            static_cast<double>(n)};
  }

  /// `row_at(r)` gives row r's numbers; results go to a[columns].
  template <class C, class RowAt>
  static void columns(RowAt row_at, std::int64_t rows, std::int64_t count, C* a, C*) {
    for (std::int64_t c = 0; c < count; ++c) a[c] = start<C>();
    for (std::int64_t r = 0; r < rows; ++r) {
      const C* x = row_at(r);
#pragma GCC ivdep
      for (std::int64_t c = 0; c < count; ++c) a[c] = join(a[c], map(x[c]));
    }
  }
};

struct LogSumExp {
  static constexpr bool kPaired = true;
  template <class C>
  static CASTOR_HOST_DEVICE C shifted_exp(C x, C max) {
    return x == max ? C(1) : math::exp(x - max);  // infinities must not meet in a difference
  }
  static Partial identity() { return {-HUGE_VAL, 0, 0}; }
  static void merge(Partial& total, const Partial& part) {
    if (part.count == 0) return;
    const double max = larger(total.a, part.a);
    const double sum = total.b * shifted_exp(total.a, max) + part.b * shifted_exp(part.a, max);
    total = {max, sum, total.count + part.count};
  }
  static double finish(const Partial& total, double, double) {
    return total.a == -HUGE_VAL ? -HUGE_VAL : total.a + std::log(total.b);
  }

  template <class C>
  static Partial row(const C* x, std::int64_t n) {
    const C max = max_lanes<C>(n, [x](std::int64_t i) { return x[i]; });
    const C sum = sum_lanes<C>(n, [x, max](std::int64_t i) { return shifted_exp(x[i], max); });
    return {static_cast<double>(max), static_cast<double>(sum), static_cast<double>(n)};
  }

  template <class C, class RowAt>
  static void columns(RowAt row_at, std::int64_t rows, std::int64_t count, C* a, C* b) {
    Simple<ReduceOp::max>::columns<C>(row_at, rows, count, a, b);
    for (std::int64_t c = 0; c < count; ++c) b[c] = C(0);
    for (std::int64_t r = 0; r < rows; ++r) {
      const C* x = row_at(r);
#pragma GCC ivdep
      for (std::int64_t c = 0; c < count; ++c) b[c] += shifted_exp(x[c], a[c]);
    }
  }
};

struct Variance {
  static constexpr bool kPaired = true;
  static Partial identity() { return {}; }
  static void merge(Partial& total, const Partial& part) {
    if (part.count == 0) return;
    const double count = total.count + part.count, difference = part.a - total.a;
    total.a += difference * (part.count / count);
    total.b += part.b + difference * difference * (total.count * (part.count / count));
    total.count = count;
  }
  static double finish(const Partial& total, double count, double correction) {
    return count == 0 ? std::nan("") : total.b / std::max(count - correction, 0.0);
  }

  template <class C>
  static Partial row(const C* x, std::int64_t n) {
    const C mean = sum_lanes<C>(n, [x](std::int64_t i) { return x[i]; }) / static_cast<C>(n);
    const C squares = sum_lanes<C>(n, [x, mean](std::int64_t i) { return (x[i] - mean) * (x[i] - mean); });
    return {static_cast<double>(mean), static_cast<double>(squares), static_cast<double>(n)};
  }

  template <class C, class RowAt>
  static void columns(RowAt row_at, std::int64_t rows, std::int64_t count, C* a, C* b) {
    Simple<ReduceOp::sum>::columns<C>(row_at, rows, count, a, b);
    for (std::int64_t c = 0; c < count; ++c) {
      a[c] /= static_cast<C>(rows);
      b[c] = C(0);
    }
    for (std::int64_t r = 0; r < rows; ++r) {
      const C* x = row_at(r);
#pragma GCC ivdep
      for (std::int64_t c = 0; c < count; ++c) b[c] += (x[c] - a[c]) * (x[c] - a[c]);
    }
  }
};

/// n elements as computed numbers next to each other: x itself where it is that, else converted into `buffer`.
template <class T>
const Computed<T>* gathered(const T* x, std::int64_t stride, std::int64_t n, Computed<T>* buffer) {
  if constexpr (std::is_arithmetic_v<T>) {
    if (stride == 1) return x;
  }
  if (stride == 1) {
#pragma GCC ivdep
    for (std::int64_t i = 0; i < n; ++i) buffer[i] = load(x[i]);
  } else {
    for (std::int64_t i = 0; i < n; ++i) buffer[i] = load(x[i * stride]);
  }
  return buffer;
}

/// Where results go.
template <class Op, class T>
struct Output {
  T* y;
  Computed<T>* mean;  // variance only; may be null
  double count;
  double correction;

  void write(std::int64_t at, const Partial& total) const {
    y[at] = store<T>(static_cast<Computed<T>>(Op::finish(total, count, correction)));
    if (mean != nullptr) mean[at] = static_cast<Computed<T>>(count == 0 ? std::nan("") : total.a);
  }
};

template <class Op>
void put(double* workspace, std::int64_t at, const Partial& partial) {
  if constexpr (Op::kPaired) {
    workspace[2 * at] = partial.a;
    workspace[2 * at + 1] = partial.b;
  } else {
    workspace[at] = partial.a;
  }
}

template <class Op>
Partial take(const double* workspace, std::int64_t at, std::int64_t count) {
  const double n = static_cast<double>(count);
  return Op::kPaired ? Partial{workspace[2 * at], workspace[2 * at + 1], n} : Partial{workspace[at], 0, n};
}

/// Pieces [first, last) of one output, whose elements start at x, joined in order.
template <class Op, class T>
Partial reduce_pieces(const ReducePlan& plan, const T* x, std::int64_t first, std::int64_t last) {
  Computed<T> buffer[ReducePlan::kPiece];
  const int outer = plan.reduced.ndim - 1;
  const std::int64_t stride = outer < 0 ? 1 : plan.reduced.x_stride[outer];
  Partial total = Op::identity();
  for (std::int64_t piece = first; piece < last; ++piece) {
    std::int64_t offset, ignored;
    plan.reduced.offsets(piece / plan.pieces_per_run, outer, offset, ignored);
    const std::int64_t begin = piece % plan.pieces_per_run * ReducePlan::kPiece;
    const std::int64_t n = std::min(ReducePlan::kPiece, plan.run - begin);
    Op::merge(total, Op::row(gathered(x + offset + begin * stride, stride, n, buffer), n));
  }
  return total;
}

template <class Op, class T>
void reduce_rows(const ReducePlan& plan, const T* x, const Output<Op, T>& output, double* workspace) {
  const auto part_elements = [&](std::int64_t part) {
    // The last piece of a run is shorter, so elements of a part are counted from its pieces.
    std::int64_t elements = 0;
    const std::int64_t last = std::min(plan.pieces, (part + 1) * plan.pieces_per_part);
    for (std::int64_t piece = part * plan.pieces_per_part; piece < last; ++piece) {
      elements += std::min(ReducePlan::kPiece, plan.run - piece % plan.pieces_per_run * ReducePlan::kPiece);
    }
    return elements;
  };
  const std::int64_t parts = plan.has_partials ? plan.parts : 1;
  const std::int64_t elements = std::max<std::int64_t>(1, plan.has_partials ? ReducePlan::kPart : plan.count);
  parallel_for(plan.outputs * parts, std::max<std::int64_t>(1, kGrainElements / elements),
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t task = begin; task < end; ++task) {
                   std::int64_t at_x, at_y;
                   plan.kept.offsets(task / parts, plan.kept.ndim, at_x, at_y);
                   if (plan.has_partials) {
                     const std::int64_t part = task % parts;
                     put<Op>(workspace, task,
                             reduce_pieces<Op>(plan, x + at_x, part * plan.pieces_per_part,
                                               std::min(plan.pieces, (part + 1) * plan.pieces_per_part)));
                   } else {
                     output.write(at_y, reduce_pieces<Op>(plan, x + at_x, 0, plan.pieces));
                   }
                 }
               });
  if (!plan.has_partials) return;
  for (std::int64_t k = 0; k < plan.outputs; ++k) {
    std::int64_t at_x, at_y;
    plan.kept.offsets(k, plan.kept.ndim, at_x, at_y);
    Partial total = Op::identity();
    for (std::int64_t part = 0; part < parts; ++part)
      Op::merge(total, take<Op>(workspace, k * parts + part, part_elements(part)));
    output.write(at_y, total);
  }
}

/// Row block `block` of `count` columns from x on, into a[count] (and b[count] of paired ops).
template <class Op, class T>
void reduce_row_block(const ReducePlan& plan, const T* x, std::int64_t block, std::int64_t count, Computed<T>* a,
                      Computed<T>* b) {
  Computed<T> buffer[ReducePlan::kColumnTile];
  const std::int64_t first = block * ReducePlan::kRowBlock;
  const std::int64_t rows = std::min(ReducePlan::kRowBlock, plan.count - first);
  const std::int64_t stride = plan.kept.x_stride[plan.kept.ndim - 1];
  const auto row_at = [&](std::int64_t r) {
    std::int64_t offset, ignored;
    plan.reduced.offsets(first + r, plan.reduced.ndim, offset, ignored);
    return gathered(x + offset, stride, count, buffer);
  };
  Op::template columns<Computed<T>>(row_at, rows, count, a, b);
}

template <class Op, class T>
void reduce_columns(const ReducePlan& plan, const T* x, const Output<Op, T>& output, double* workspace) {
  constexpr std::int64_t kTile = ReducePlan::kColumnTile;
  const std::int64_t blocks = plan.row_blocks, tasks = plan.slabs * plan.tiles;
  const int inner = plan.kept.ndim - 1;
  const auto place = [&](std::int64_t task, std::int64_t& at_x, std::int64_t& at_y, std::int64_t& column,
                         std::int64_t& count) {
    plan.kept.offsets(task / plan.tiles, inner, at_x, at_y);
    column = task % plan.tiles * kTile;
    count = std::min(kTile, plan.columns - column);
    at_x += column * plan.kept.x_stride[inner];
    at_y += column * plan.kept.y_stride[inner];
  };
  const auto rows_in = [&](std::int64_t block) {
    return std::min(ReducePlan::kRowBlock, plan.count - block * ReducePlan::kRowBlock);
  };
  // Partial results of a row block lie together: [block][task * kTile + column] would leave holes, so [block][output].
  const auto slot = [&](std::int64_t block, std::int64_t task, std::int64_t column) {
    return block * plan.outputs + task / plan.tiles * plan.columns + column;
  };
  if (plan.has_partials) {
    parallel_for(blocks, 1, [&](std::int64_t begin, std::int64_t end) {
      Computed<T> a[kTile], b[kTile];
      for (std::int64_t block = begin; block < end; ++block) {
        for (std::int64_t task = 0; task < tasks; ++task) {
          std::int64_t at_x, at_y, column, count;
          place(task, at_x, at_y, column, count);
          reduce_row_block<Op>(plan, x + at_x, block, count, a, b);
          for (std::int64_t c = 0; c < count; ++c) {
            put<Op>(workspace, slot(block, task, column + c),
                    {static_cast<double>(a[c]), Op::kPaired ? static_cast<double>(b[c]) : 0, 0});
          }
        }
      }
    });
  }
  const std::int64_t elements =
      std::max<std::int64_t>(1, (plan.has_partials ? blocks : plan.count) * std::min(kTile, plan.columns));
  parallel_for(tasks, std::max<std::int64_t>(1, kGrainElements / elements), [&](std::int64_t begin, std::int64_t end) {
    Computed<T> a[kTile], b[kTile];
    Partial total[kTile];
    for (std::int64_t task = begin; task < end; ++task) {
      std::int64_t at_x, at_y, column, count;
      place(task, at_x, at_y, column, count);
      for (std::int64_t c = 0; c < count; ++c) total[c] = Op::identity();
      for (std::int64_t block = 0; block < blocks; ++block) {
        if (plan.has_partials) {
          for (std::int64_t c = 0; c < count; ++c)
            Op::merge(total[c], take<Op>(workspace, slot(block, task, column + c), rows_in(block)));
        } else {
          reduce_row_block<Op>(plan, x + at_x, block, count, a, b);
          const double rows = static_cast<double>(rows_in(block));
          for (std::int64_t c = 0; c < count; ++c) {
            Op::merge(total[c], {static_cast<double>(a[c]), Op::kPaired ? static_cast<double>(b[c]) : 0, rows});
          }
        }
      }
      for (std::int64_t c = 0; c < count; ++c) output.write(at_y + c * plan.kept.y_stride[inner], total[c]);
    }
  });
}

template <class F>
void visit_float(DType dtype, const char* op, F&& f) {
  dtype == DType::f64 ? f(TypeTag<double>{}) : visit_training_float(dtype, op, f);
}

template <class F>
void visit_reduce(ReduceOp op, F&& f) {
  switch (op) {
    case ReduceOp::sum:
      return f(Simple<ReduceOp::sum>{});
    case ReduceOp::mean:
      return f(Simple<ReduceOp::mean>{});
    case ReduceOp::max:
      return f(Simple<ReduceOp::max>{});
    case ReduceOp::min:
      return f(Simple<ReduceOp::min>{});
    case ReduceOp::norm1:
      return f(Simple<ReduceOp::norm1>{});
    case ReduceOp::norm2:
      return f(Simple<ReduceOp::norm2>{});
    case ReduceOp::norm_inf:
      return f(Simple<ReduceOp::norm_inf>{});
    case ReduceOp::logsumexp:
      return f(LogSumExp{});
    case ReduceOp::variance:
      return f(Variance{});
  }
}

}  // namespace

void run(const Cpu&, const ReduceArgs& args) {
  const ReducePlan plan(args.x, args.y, args.axes);
  if (plan.outputs == 0) return;
  visit_float(args.x.dtype, "reduce", [&](auto tag) {
    using T = typename decltype(tag)::type;
    visit_reduce(args.op, [&](auto op) {
      using Op = decltype(op);
      Computed<T>* mean = args.mean.defined() ? args.mean.as<Computed<T>>() : nullptr;
      const Output<Op, T> output{args.y.as<T>(), mean, static_cast<double>(plan.count), args.correction};
      double* workspace = args.workspace.as<double>();
      plan.by_columns ? reduce_columns<Op, T>(plan, args.x.as<T>(), output, workspace)
                      : reduce_rows<Op, T>(plan, args.x.as<T>(), output, workspace);
    });
  });
}

}  // namespace castor
