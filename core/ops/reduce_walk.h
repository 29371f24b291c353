// The two walks of a reduction on the CPU, for the reductions proper and for statistics of normalisation: by rows where
// the innermost axis in memory is reduced, by columns where it is kept. A Source turns elements into partial results,
// an Op joins them in f64, a Sink takes the totals.
//
// Delicate: which elements meet when is decided by the plan (the shape) alone; threads only share out independent
// tasks.
#pragma once

#include <algorithm>
#include <type_traits>

#include "core/base/dtype.h"
#include "core/base/parallel.h"
#include "core/ops/reduce_plan.h"

namespace castor {

/// The type that elements of type T are computed in.
template <class T>
using Computed = decltype(load(T{}));

/// What some elements came to: one number, or two for an Op with kPaired.
struct Partial {
  double a = 0;
  double b = 0;
};

/// The elements of a piece next to each other as computed numbers: x's own bytes where they are that, else `buffer`.
///   x  the first element of the output's first run
template <class T>
const Computed<T>* gathered(const T* x, const ReducePiece& piece, Computed<T>* buffer) {
  if constexpr (std::is_arithmetic_v<T>) {
    if (piece.runs == 1 && piece.stride == 1) return x + piece.offset(0);
  }
  Computed<T>* to = buffer;
  for (std::int64_t r = 0; r < piece.runs; ++r, to += piece.length) {
    const T* from = x + piece.offset(r);
    if (piece.stride == 1) {
#pragma GCC ivdep
      for (std::int64_t i = 0; i < piece.length; ++i) to[i] = load(from[i]);
    } else {
      for (std::int64_t i = 0; i < piece.length; ++i) to[i] = load(from[i * piece.stride]);
    }
  }
  return buffer;
}

/// n elements `stride` apart, in the same way.
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

namespace detail {

inline constexpr std::int64_t kReduceGrain = 16384;  // elements that make a parallel task worth its start

template <class Op>
void put_partial(double* workspace, std::int64_t at, double a, double b) {
  if constexpr (Op::kPaired) {
    workspace[2 * at] = a;
    workspace[2 * at + 1] = b;
  } else {
    workspace[at] = a;
  }
}

template <class Op>
double second(const double* workspace, std::int64_t at) {
  return Op::kPaired ? workspace[2 * at + 1] : 0;
}

template <class Op>
double first(const double* workspace, std::int64_t at) {
  return workspace[Op::kPaired ? 2 * at : at];
}

template <class Op, class Source>
Partial reduce_pieces(const ReducePlan& plan, const Source& source, std::int64_t x, std::int64_t output,
                      std::int64_t begin, std::int64_t end, double& count) {
  Partial total = Op::identity();
  count = 0;
  for (std::int64_t index = begin; index < end; ++index) {
    const ReducePiece piece = plan.piece(index);
    const Partial part = source.row(x, piece, output);
    const double elements = static_cast<double>(piece.numel());
    Op::merge(total.a, total.b, count, part.a, part.b, elements);
    count += elements;
  }
  return total;
}

template <class Op, class Source, class Sink>
void reduce_rows(const ReducePlan& plan, const Source& source, const Sink& sink, double* workspace) {
  const std::int64_t parts = plan.has_partials ? plan.parts : 1;
  const std::int64_t elements = std::max<std::int64_t>(1, plan.has_partials ? ReducePlan::kPart : plan.count);
  const auto last_piece = [&](std::int64_t part) { return std::min(plan.pieces, (part + 1) * plan.pieces_per_part); };
  parallel_for(plan.outputs * parts, std::max<std::int64_t>(1, kReduceGrain / elements),
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t task = begin; task < end; ++task) {
                   std::int64_t x, output;
                   double count;
                   plan.kept.offsets(task / parts, plan.kept.ndim, x, output);
                   if (plan.has_partials) {
                     const std::int64_t part = task % parts;
                     const Partial total = reduce_pieces<Op>(plan, source, x, output, part * plan.pieces_per_part,
                                                             last_piece(part), count);
                     put_partial<Op>(workspace, task, total.a, total.b);
                   } else {
                     sink.write(output, reduce_pieces<Op>(plan, source, x, output, 0, plan.pieces, count));
                   }
                 }
               });
  if (!plan.has_partials) return;
  for (std::int64_t k = 0; k < plan.outputs; ++k) {
    std::int64_t x, output;
    plan.kept.offsets(k, plan.kept.ndim, x, output);
    Partial total = Op::identity();
    double count = 0;
    for (std::int64_t part = 0; part < parts; ++part) {
      double elements = 0;
      for (std::int64_t i = part * plan.pieces_per_part; i < last_piece(part); ++i)
        elements += static_cast<double>(plan.piece(i).numel());
      const std::int64_t at = k * parts + part;
      Op::merge(total.a, total.b, count, first<Op>(workspace, at), second<Op>(workspace, at), elements);
      count += elements;
    }
    sink.write(output, total);
  }
}

/// A tile of columns of one slab: where it starts in x and in the output.
struct ColumnTile {
  std::int64_t x, output, output_stride, columns, slab, first;
};

template <class Op, class Source, class Sink>
void reduce_columns(const ReducePlan& plan, const Source& source, const Sink& sink, double* workspace) {
  using Value = typename Source::Value;
  constexpr std::int64_t kTile = ReducePlan::kColumnTile;
  const std::int64_t blocks = plan.row_blocks, tasks = plan.slabs * plan.tiles;
  const int inner = plan.kept.ndim - 1;
  const auto tile_of = [&](std::int64_t task) {
    ColumnTile tile{};
    tile.slab = task / plan.tiles;
    plan.kept.offsets(tile.slab, inner, tile.x, tile.output);
    tile.first = task % plan.tiles * kTile;
    tile.columns = std::min(kTile, plan.columns - tile.first);
    tile.x += tile.first * plan.kept.x_stride[inner];
    tile.output_stride = plan.kept.y_stride[inner];
    tile.output += tile.first * tile.output_stride;
    return tile;
  };
  const auto rows_in = [&](std::int64_t block) {
    return std::min(ReducePlan::kRowBlock, plan.count - block * ReducePlan::kRowBlock);
  };
  const auto reduce_block = [&](const ColumnTile& tile, std::int64_t block, Value* a, Value* b) {
    std::int64_t offsets[ReducePlan::kRowBlock];
    const std::int64_t rows = rows_in(block);
    for (std::int64_t r = 0; r < rows; ++r) {
      std::int64_t ignored;
      plan.reduced.offsets(block * ReducePlan::kRowBlock + r, plan.reduced.ndim, offsets[r], ignored);
      offsets[r] += tile.x;
    }
    source.columns(offsets, rows, plan.kept.x_stride[inner], tile.columns, tile.output, tile.output_stride, a, b);
  };
  const auto slot = [&](std::int64_t block, const ColumnTile& tile) {
    return block * plan.outputs + tile.slab * plan.columns + tile.first;
  };

  if (plan.has_partials) {
    parallel_for(blocks, 1, [&](std::int64_t begin, std::int64_t end) {
      Value a[kTile], b[kTile];
      for (std::int64_t block = begin; block < end; ++block) {
        for (std::int64_t task = 0; task < tasks; ++task) {
          const ColumnTile tile = tile_of(task);
          reduce_block(tile, block, a, b);
          const std::int64_t at = slot(block, tile);
          for (std::int64_t c = 0; c < tile.columns; ++c) {
            put_partial<Op>(workspace, at + c, static_cast<double>(a[c]), Op::kPaired ? static_cast<double>(b[c]) : 0);
          }
        }
      }
    });
  }
  const std::int64_t elements =
      std::max<std::int64_t>(1, (plan.has_partials ? blocks : plan.count) * std::min(kTile, plan.columns));
  parallel_for(tasks, std::max<std::int64_t>(1, kReduceGrain / elements), [&](std::int64_t begin, std::int64_t end) {
    Value a[kTile], b[kTile];
    double total_a[kTile], total_b[kTile];
    for (std::int64_t task = begin; task < end; ++task) {
      const ColumnTile tile = tile_of(task);
      for (std::int64_t c = 0; c < tile.columns; ++c) {
        total_a[c] = Op::identity().a;
        total_b[c] = Op::identity().b;
      }
      double count = 0;
      for (std::int64_t block = 0; block < blocks; ++block) {
        const double rows = static_cast<double>(rows_in(block));
        if (plan.has_partials) {
          const std::int64_t at = slot(block, tile);
          for (std::int64_t c = 0; c < tile.columns; ++c) {
            Op::merge(total_a[c], total_b[c], count, first<Op>(workspace, at + c), second<Op>(workspace, at + c), rows);
          }
        } else {
          reduce_block(tile, block, a, b);
          for (std::int64_t c = 0; c < tile.columns; ++c) {
            Op::merge(total_a[c], total_b[c], count, static_cast<double>(a[c]),
                      Op::kPaired ? static_cast<double>(b[c]) : 0, rows);
          }
        }
        count += rows;
      }
      for (std::int64_t c = 0; c < tile.columns; ++c)
        sink.write(tile.output + c * tile.output_stride, {total_a[c], total_b[c]});
    }
  });
}

}  // namespace detail

/// Runs a reduction.
///   Op         static: kPaired; identity() -> Partial; merge(double& a, double& b, double count, double part_a, double
///   part_b,
///              double part_count), which joins a part into a total of `count` elements (0 at first)
///   source     Value; row(x_offset, piece, output) -> Partial; columns(offsets of rows, rows, stride, columns, output,
///              output_stride, Value* a, Value* b). `output` is the offset of the (first) result.
///   sink       write(output, Partial total)
///   workspace  plan.partials() numbers, twice that for a paired Op
template <class Op, class Source, class Sink>
void reduce_by_plan(const ReducePlan& plan, const Source& source, const Sink& sink, double* workspace) {
  if (plan.outputs == 0) return;
  plan.by_columns ? detail::reduce_columns<Op>(plan, source, sink, workspace)
                  : detail::reduce_rows<Op>(plan, source, sink, workspace);
}

}  // namespace castor
