// How several strided operands of one shape are walked in step, on any device: axes that are dense in all operands
// merge, and the innermost one is the result's densest, so that walks are short and runs long.
#pragma once

#include <cstdlib>

#include "core/tensor/tensor.h"

namespace castor {

/// N operands over a common shape; the last one is the result, by convention. Axis 0 is the outermost. Strides are in
/// elements; 0 along broadcast axes. A shape without axes becomes one axis of size 1.
template <int N>
struct StridedPlan {
  int ndim = 0;  ///< at least 1
  bool is_empty = false;
  std::int64_t size[kMaxDims] = {};
  std::int64_t stride[N][kMaxDims] = {};

  /// Views must have equal sizes (expand before).
  explicit StridedPlan(const View (&views)[N]) {
    int order[kMaxDims];
    int count = 0;
    for (int i = 0; i < views[0].ndim; ++i) {
      if (views[0].size[i] == 0) is_empty = true;
      if (views[0].size[i] != 1) order[count++] = i;
    }
    // Outermost = largest stride of the result. Stable for equal strides.
    for (int i = 1; i < count; ++i) {
      for (int j = i; j > 0 && std::abs(views[N - 1].stride[order[j - 1]]) < std::abs(views[N - 1].stride[order[j]]);
           --j) {
        const int swapped = order[j];
        order[j] = order[j - 1];
        order[j - 1] = swapped;
      }
    }
    for (int i = 0; i < count; ++i) {
      const int axis = order[i];
      bool merges = ndim > 0;
      for (int k = 0; k < N && merges; ++k) merges = stride[k][ndim - 1] == views[k].stride[axis] * views[0].size[axis];
      if (!merges) ++ndim;
      size[ndim - 1] = merges ? size[ndim - 1] * views[0].size[axis] : views[0].size[axis];
      for (int k = 0; k < N; ++k) stride[k][ndim - 1] = views[k].stride[axis];
    }
    if (ndim == 0) {
      ndim = 1;
      size[0] = 1;
      for (int k = 0; k < N; ++k) stride[k][0] = 1;
    }
  }

  std::int64_t inner() const { return size[ndim - 1]; }

  /// Groups of `width` neighbours along the innermost axis; the last group of a row may be shorter.
  std::int64_t groups(std::int64_t width) const {
    std::int64_t count = (inner() + width - 1) / width;
    for (int i = 0; i < ndim - 1; ++i) count *= size[i];
    return count;
  }
};

/// Cuts a plan into parts of at most `most` groups of `width`, for index arithmetic of 32 bits: calls part(plan,
/// offsets) for each, where operand k of the part starts offsets[k] elements from the whole one's start. Parts cover
/// the plan once.
template <int N, class Part>
void for_each_part(const StridedPlan<N>& plan, const std::int64_t (&offsets)[N], std::int64_t width, std::int64_t most,
                   const Part& part) {
  if (plan.groups(width) <= most) {
    part(plan, offsets);
    return;
  }
  int axis = 0;
  while (axis < plan.ndim - 1 && plan.size[axis] == 1) ++axis;
  const std::int64_t unit = axis == plan.ndim - 1 ? width : 1;
  StridedPlan<N> first = plan, second = plan;
  first.size[axis] = (plan.size[axis] / 2 + unit - 1) / unit * unit;
  second.size[axis] = plan.size[axis] - first.size[axis];
  std::int64_t behind[N];
  for (int k = 0; k < N; ++k) behind[k] = offsets[k] + first.size[axis] * plan.stride[k][axis];
  for_each_part(first, offsets, width, most, part);
  for_each_part(second, behind, width, most, part);
}

}  // namespace castor
