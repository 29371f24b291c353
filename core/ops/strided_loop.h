// Walks several strided operands of one shape in step, on the CPU: merges axes that are dense in all operands, orders them so
// that the innermost run is long, and hands out one-dimensional runs. Pointwise kernels are then a single loop.
#pragma once

#include <cstdlib>

#include "core/base/parallel.h"
#include "core/tensor/tensor.h"

namespace castor {

/// N operands over a common shape. Strides are in elements; 0 along broadcast axes.
template <int N>
class StridedLoop {
 public:
  /// Views must have equal sizes (expand before).
  explicit StridedLoop(const View (&views)[N]) {
    int order[kMaxDims];
    int count = 0;
    for (int i = 0; i < views[0].ndim; ++i) {
      if (views[0].size[i] == 0) is_empty_ = true;
      if (views[0].size[i] != 1) order[count++] = i;
    }
    // Outermost = largest stride of the last operand, which is the result by convention. Stable for equal strides.
    for (int i = 1; i < count; ++i) {
      for (int j = i; j > 0 && std::abs(views[N - 1].stride[order[j - 1]]) < std::abs(views[N - 1].stride[order[j]]); --j) {
        const int swapped = order[j];
        order[j] = order[j - 1];
        order[j - 1] = swapped;
      }
    }
    for (int i = 0; i < count; ++i) {
      const int axis = order[i];
      bool merges = ndim_ > 0;
      for (int k = 0; k < N && merges; ++k) merges = stride_[k][ndim_ - 1] == views[k].stride[axis] * views[0].size[axis];
      if (!merges) ++ndim_;
      size_[ndim_ - 1] = merges ? size_[ndim_ - 1] * views[0].size[axis] : views[0].size[axis];
      for (int k = 0; k < N; ++k) stride_[k][ndim_ - 1] = views[k].stride[axis];
    }
    if (ndim_ == 0) {
      ndim_ = 1;
      size_[0] = 1;
      for (int k = 0; k < N; ++k) stride_[k][0] = 1;
    }
  }

  /// Calls run(offsets, strides, n) for runs of n elements: operand k's run starts offsets[k] elements from its start and
  /// steps by strides[k]. Runs are disjoint; threads share them.
  template <class Run>
  void for_each_run(const Run& run) const {
    // The walk is compiled once for each N; only the run itself is compiled for each kernel.
    walk(&run, [](const void* body, const std::int64_t* offsets, const std::int64_t* strides, std::int64_t n) {
      (*static_cast<const Run*>(body))(offsets, strides, n);
    });
  }

 private:
  using Body = void (*)(const void* body, const std::int64_t* offsets, const std::int64_t* strides, std::int64_t n);

  void walk(const void* run, Body body) const {
    if (is_empty_) return;
    constexpr std::int64_t kGrain = 16384;
    const std::int64_t inner = size_[ndim_ - 1];
    std::int64_t strides[N];
    for (int k = 0; k < N; ++k) strides[k] = stride_[k][ndim_ - 1];
    if (ndim_ == 1) {
      parallel_for(inner, kGrain, [&](std::int64_t begin, std::int64_t end) {
        std::int64_t offsets[N];
        for (int k = 0; k < N; ++k) offsets[k] = begin * strides[k];
        body(run, offsets, strides, end - begin);
      });
      return;
    }
    std::int64_t rows = 1;
    for (int i = 0; i < ndim_ - 1; ++i) rows *= size_[i];
    parallel_for(rows, std::max<std::int64_t>(1, kGrain / inner), [&](std::int64_t begin, std::int64_t end) {
      std::int64_t index[kMaxDims] = {};
      std::int64_t offsets[N] = {};
      std::int64_t rest = begin;
      for (int i = ndim_ - 2; i >= 0; --i) {
        index[i] = rest % size_[i];
        rest /= size_[i];
        for (int k = 0; k < N; ++k) offsets[k] += index[i] * stride_[k][i];
      }
      for (std::int64_t row = begin; row < end; ++row) {
        body(run, offsets, strides, inner);
        for (int i = ndim_ - 2; i >= 0; --i) {
          for (int k = 0; k < N; ++k) offsets[k] += stride_[k][i];
          if (++index[i] < size_[i]) break;
          for (int k = 0; k < N; ++k) offsets[k] -= size_[i] * stride_[k][i];
          index[i] = 0;
        }
      }
    });
  }

  int ndim_ = 0;
  bool is_empty_ = false;
  std::int64_t size_[kMaxDims] = {};
  std::int64_t stride_[N][kMaxDims] = {};
};

}  // namespace castor
