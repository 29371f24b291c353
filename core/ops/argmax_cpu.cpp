// Position of the largest element, on the CPU: along rows a vectorised maximum of each chunk and a search in the chunks
// that improve it; across rows (the axis is not innermost in memory) one running best a column.
//
// Delicate: the first of equal elements wins, and the first NaN wins over everything.
#include <algorithm>

#include "core/base/parallel.h"
#include "core/ops/lane_fold.h"
#include "core/ops/reduce.h"
#include "core/ops/reduce_plan.h"

namespace castor {
namespace {

constexpr std::int64_t kGrainElements = 16384;
constexpr std::int64_t kChunk = 1024;
constexpr std::int64_t kColumns = 256;

template <class C>
CASTOR_HOST_DEVICE bool beats(C x, C best) {
  return x > best || (x != x && best == best);
}

template <class T>
std::int64_t first_largest(const T* x, std::int64_t stride, std::int64_t n) {
  using C = decltype(load(T{}));
  C best = load(x[0]);
  std::int64_t at = 0;
  for (std::int64_t begin = 0; begin < n; begin += kChunk) {
    const std::int64_t count = std::min(kChunk, n - begin);
    if (stride == 1) {
      const T* chunk = x + begin;
      if (!beats(max_lanes<C>(count, [chunk](std::int64_t i) { return load(chunk[i]); }), best)) continue;
    }
    for (std::int64_t i = begin; i < begin + count; ++i) {
      const C value = load(x[i * stride]);
      if (!beats(value, best)) continue;
      best = value;
      at = i;
    }
  }
  return at;
}

template <class T>
void largest_of_columns(const T* x, std::int64_t row_stride, std::int64_t rows, std::int64_t column_stride,
                        std::int64_t columns, std::int64_t* index, std::int64_t index_stride) {
  using C = decltype(load(T{}));
  C best[kColumns];
  std::int64_t at[kColumns];
  for (std::int64_t c = 0; c < columns; ++c) {
    best[c] = load(x[c * column_stride]);
    at[c] = 0;
  }
  for (std::int64_t r = 1; r < rows; ++r) {
    const T* row = x + r * row_stride;
    for (std::int64_t c = 0; c < columns; ++c) {
      const C value = load(row[c * column_stride]);
      const bool wins = beats(value, best[c]);
      best[c] = wins ? value : best[c];
      at[c] = wins ? r : at[c];
    }
  }
  for (std::int64_t c = 0; c < columns; ++c) index[c * index_stride] = at[c];
}

template <class T>
void run_dtype(const ArgmaxArgs& args) {
  // The plan orders the kept axes; the reduced one is a single axis, possibly of size 1.
  const ReducePlan plan(args.x, args.index, 1u << args.axis);
  const std::int64_t rows = args.x.size[args.axis], stride = args.x.stride[args.axis];
  const T* x = args.x.as<T>();
  std::int64_t* index = args.index.as<std::int64_t>();
  if (plan.outputs == 0) return;
  if (!plan.by_columns) {
    parallel_for(plan.outputs, std::max<std::int64_t>(1, kGrainElements / rows),
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t k = begin; k < end; ++k) {
                     std::int64_t at_x, at_y;
                     plan.kept.offsets(k, plan.kept.ndim, at_x, at_y);
                     index[at_y] = first_largest(x + at_x, stride, rows);
                   }
                 });
    return;
  }
  const int inner = plan.kept.ndim - 1;
  const std::int64_t tiles = (plan.columns + kColumns - 1) / kColumns;
  const std::int64_t grain = std::max<std::int64_t>(1, kGrainElements / (rows * std::min(kColumns, plan.columns)));
  parallel_for(plan.slabs * tiles, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t task = begin; task < end; ++task) {
      std::int64_t at_x, at_y;
      plan.kept.offsets(task / tiles, inner, at_x, at_y);
      const std::int64_t column = task % tiles * kColumns;
      largest_of_columns(x + at_x + column * plan.kept.x_stride[inner], stride, rows, plan.kept.x_stride[inner],
                         std::min(kColumns, plan.columns - column), index + at_y + column * plan.kept.y_stride[inner],
                         plan.kept.y_stride[inner]);
    }
  });
}

}  // namespace

void run(const Cpu&, const ArgmaxArgs& args) {
  visit_dtype(args.x.dtype, [&](auto tag) { run_dtype<typename decltype(tag)::type>(args); });
}

}  // namespace castor
