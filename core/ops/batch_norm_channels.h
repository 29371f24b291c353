// What batch norm's forward and backward share on the CPU: the two memory orders, and a channel's numbers.
//
// Delicate: x and everything of x's shape have equal strides (the contract sees to it), so one offset serves them all.
#pragma once

#include <algorithm>

#include "core/ops/norm.h"
#include "core/ops/reduce_ops.h"

namespace castor::batch_norm {

inline constexpr std::int64_t kGrainElements = 16384;
inline constexpr std::int64_t kTile = ReducePlan::kColumnTile;

/// The [C]-shaped view, with 1 on the other axes, that a plan reduces x to.
inline View channel_view(const View& x) {
  View y = x;
  for (int i = 0; i < y.ndim; ++i) {
    if (i != 1) y.size[i] = 1;
    y.stride[i] = i == 0 ? x.size[1] : 1;
  }
  return y;
}

inline ReducePlan channel_plan(const View& x) { return {x, channel_view(x), ~2u}; }

/// x as [outer, C, inner]: rows of channels (inner = 1) for channels-last, planes for row-major.
struct Layout {
  std::int64_t outer, channels, inner;
  explicit Layout(const View& x) {
    const std::int64_t count = x.numel();
    channels = x.size[1];
    if (channels <= 1) {  // one plane
      outer = 1;
      inner = count;
    } else if (x.stride[1] == 1) {
      outer = count / channels;
      inner = 1;
    } else {
      outer = x.size[0];
      inner = outer == 0 ? 0 : count / (outer * channels);
    }
  }
};

template <class C>
struct Channel {
  C mean, scale, shift, average, slope;
};

/// Arrays of a tile of channels, for loops across channels.
template <class C>
struct ChannelTile {
  C mean[kTile], scale[kTile], shift[kTile], average[kTile], slope[kTile];
  void set(std::int64_t i, const Channel<C>& channel) {
    mean[i] = channel.mean;
    scale[i] = channel.scale;
    shift[i] = channel.shift;
    average[i] = channel.average;
    slope[i] = channel.slope;
  }
};

/// Calls by_rows(first channel, count, first row, last row) for channels-last or by_plane(plane, channel) otherwise, in
/// parallel.
template <class ByRows, class ByPlane>
void for_each_part(const Layout& layout, ByRows by_rows, ByPlane by_plane) {
  if (layout.inner == 1 && layout.channels > 0) {
    for (std::int64_t first = 0; first < layout.channels; first += kTile) {
      const std::int64_t count = std::min(kTile, layout.channels - first);
      parallel_for(layout.outer, std::max<std::int64_t>(1, kGrainElements / count),
                   [&](std::int64_t begin, std::int64_t end) { by_rows(first, count, begin, end); });
    }
    return;
  }
  parallel_for(layout.outer * layout.channels,
               std::max<std::int64_t>(1, kGrainElements / std::max<std::int64_t>(layout.inner, 1)),
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t plane = begin; plane < end; ++plane) by_plane(plane, plane % layout.channels);
               });
}

template <class C>
CASTOR_HOST_DEVICE C normalized(C x, C mean, C scale, C shift) {
  return math::fma(x - mean, scale, shift);
}

template <class F>
void visit_float(DType dtype, const char* op, F&& f) {
  dtype == DType::f64 ? f(TypeTag<double>{}) : visit_training_float(dtype, op, f);
}

}  // namespace castor::batch_norm
