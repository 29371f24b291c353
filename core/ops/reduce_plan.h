// How a reduction is walked: axes merged and ordered by stride, cut into fixed blocks. The contract reads it for the
// size of the workspace, the kernels of every device for everything.
//
// Delicate: everything here is a function of sizes and strides alone; thread counts would change the bits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "core/base/host_device.h"
#include "core/tensor/tensor.h"

namespace castor {

/// A few merged axes of x, largest stride first, with y's strides along them (0 where reduced).
struct AxisGroup {
  int ndim = 0;
  std::int64_t size[kMaxDims] = {};
  std::int64_t x_stride[kMaxDims] = {};
  std::int64_t y_stride[kMaxDims] = {};

  std::int64_t numel() const {
    std::int64_t product = 1;
    for (int i = 0; i < ndim; ++i) product *= size[i];
    return product;
  }
  /// The offsets of element `index` (row-major over the group) of the first `axes` axes.
  CASTOR_HOST_DEVICE void offsets(std::int64_t index, int axes, std::int64_t& x, std::int64_t& y) const {
    x = y = 0;
    for (int i = axes - 1; i >= 0; --i) {
      const std::int64_t at = i == 0 ? index : index % size[i];  // a division costs as much as a short run
      if (i > 0) index /= size[i];
      x += at * x_stride[i];
      y += at * y_stride[i];
    }
  }
};

/// At most ReducePlan::kPiece of the elements that one output reduces: equal stretches of a few runs.
struct ReducePiece {
  const AxisGroup* axes = nullptr;
  std::int64_t first_run = 0, runs = 1;
  std::int64_t begin = 0, length = 0;  ///< of the stretch in each run
  std::int64_t stride = 1;

  CASTOR_HOST_DEVICE std::int64_t numel() const { return runs * length; }
  /// Where stretch r < runs starts, relative to the output's first element.
  CASTOR_HOST_DEVICE std::int64_t offset(std::int64_t r) const {
    std::int64_t x, ignored;
    axes->offsets(first_run + r, axes->ndim - 1, x, ignored);
    return x + begin * stride;
  }
};

/// A reduction of x to y.
struct ReducePlan {
  static constexpr std::int64_t kPiece = 1024;      ///< elements summed in f32
  static constexpr std::int64_t kPart = 16384;      ///< elements of one task when the outputs are few
  static constexpr std::int64_t kRowBlock = 128;    ///< rows summed in f32 by columns
  static constexpr std::int64_t kColumnTile = 512;  ///< columns of one task
  static constexpr std::int64_t kEnoughTasks = 16;  ///< outputs (or tiles) from which on they alone are the tasks

  AxisGroup kept, reduced;
  std::int64_t outputs = 1;  ///< elements of y
  std::int64_t count = 1;    ///< elements reduced to each
  bool by_columns = false;   ///< the innermost axis in memory is kept

  // By rows: each output's elements are runs along the innermost reduced axis. Long runs are cut at kPiece, short ones
  // grouped up to it; pieces are grouped into parts.
  std::int64_t run = 1, runs_per_piece = 1, pieces_per_run = 1, pieces = 1, pieces_per_part = 1, parts = 1;
  // By columns: the innermost kept axis is the columns, the other kept ones the slabs.
  std::int64_t columns = 1, slabs = 1, tiles = 1, row_blocks = 1;
  bool has_partials = false;  ///< parts or row blocks are tasks of their own and meet in the workspace

  ReducePlan(const View& x, const View& y, unsigned axes) {
    kept = merged(x, y, axes, false);
    reduced = merged(x, y, axes, true);
    outputs = kept.numel();
    count = reduced.numel();
    const auto innermost = [](const AxisGroup& group) {
      return group.ndim == 0 ? INT64_MAX : std::abs(group.x_stride[group.ndim - 1]);
    };
    by_columns = kept.ndim > 0 && reduced.ndim > 0 && innermost(kept) < innermost(reduced);
    if (by_columns) {
      columns = kept.size[kept.ndim - 1];
      slabs = columns == 0 ? 0 : outputs / columns;
      tiles = (columns + kColumnTile - 1) / kColumnTile;
      row_blocks = (count + kRowBlock - 1) / kRowBlock;
      has_partials = slabs * tiles < kEnoughTasks && row_blocks > 1;
    } else {
      run = reduced.ndim == 0 ? 1 : reduced.size[reduced.ndim - 1];
      const std::int64_t runs = run == 0 ? 0 : count / run;
      pieces_per_run = (run + kPiece - 1) / kPiece;
      runs_per_piece = std::max<std::int64_t>(1, kPiece / std::max<std::int64_t>(run, 1));
      pieces = pieces_per_run > 1 ? runs * pieces_per_run : (runs + runs_per_piece - 1) / runs_per_piece;
      pieces_per_part = kPart / kPiece;
      parts = (pieces + pieces_per_part - 1) / pieces_per_part;
      has_partials = outputs < kEnoughTasks && parts > 1;
    }
  }

  /// Piece `index` of an output.
  CASTOR_HOST_DEVICE ReducePiece piece(std::int64_t index) const {
    ReducePiece result;
    result.axes = &reduced;
    result.stride = reduced.ndim == 0 ? 1 : reduced.x_stride[reduced.ndim - 1];
    if (pieces_per_run > 1) {
      result.first_run = index / pieces_per_run;
      result.begin = index % pieces_per_run * kPiece;
      result.length = run - result.begin < kPiece ? run - result.begin : kPiece;
    } else {
      result.first_run = index * runs_per_piece;
      const std::int64_t left = count / run - result.first_run;
      result.runs = left < runs_per_piece ? left : runs_per_piece;
      result.length = run;
    }
    return result;
  }

  /// Partial results that meet in the workspace.
  std::int64_t partials() const { return has_partials ? outputs * (by_columns ? row_blocks : parts) : 0; }

 private:
  static AxisGroup merged(const View& x, const View& y, unsigned axes, bool want_reduced) {
    int order[kMaxDims];
    int found = 0;
    for (int i = 0; i < x.ndim; ++i) {
      if (((axes >> i & 1u) != 0) == want_reduced && x.size[i] != 1) order[found++] = i;
    }
    std::stable_sort(order, order + found, [&](int i, int j) { return std::abs(x.stride[i]) > std::abs(x.stride[j]); });
    AxisGroup group;
    for (int k = 0; k < found; ++k) {
      const int axis = order[k];
      const std::int64_t size = x.size[axis], sx = x.stride[axis], sy = want_reduced ? 0 : y.stride[axis];
      const int last = group.ndim - 1;
      if (last >= 0 && group.x_stride[last] == sx * size && group.y_stride[last] == sy * size) {
        group.size[last] *= size;
        group.x_stride[last] = sx;
        group.y_stride[last] = sy;
      } else {
        group.size[group.ndim] = size;
        group.x_stride[group.ndim] = sx;
        group.y_stride[group.ndim] = sy;
        ++group.ndim;
      }
    }
    return group;
  }
};

}  // namespace castor
