// Walks several strided operands of one shape in step, on the CPU, and hands out one-dimensional runs: pointwise
// kernels are then a single loop. Which axes merge and which one is innermost, strided_plan.h says.
#pragma once

#include "core/base/parallel.h"
#include "core/ops/strided_plan.h"

namespace castor {

/// The walk over a StridedPlan.
template <int N>
class StridedLoop {
 public:
  /// Views must have equal sizes (expand before).
  explicit StridedLoop(const View (&views)[N]) : plan_(views) {}

  /// Calls run(offsets, strides, n) for runs of n elements: operand k's run starts offsets[k] elements from its start
  /// and steps by strides[k]. Runs are disjoint; threads share them.
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
    if (plan_.is_empty) return;
    constexpr std::int64_t kGrain = 16384;
    const std::int64_t inner = plan_.inner();
    std::int64_t strides[N];
    for (int k = 0; k < N; ++k) strides[k] = plan_.stride[k][plan_.ndim - 1];
    if (plan_.ndim == 1) {
      parallel_for(inner, kGrain, [&](std::int64_t begin, std::int64_t end) {
        std::int64_t offsets[N];
        for (int k = 0; k < N; ++k) offsets[k] = begin * strides[k];
        body(run, offsets, strides, end - begin);
      });
      return;
    }
    std::int64_t rows = 1;
    for (int i = 0; i < plan_.ndim - 1; ++i) rows *= plan_.size[i];
    parallel_for(rows, std::max<std::int64_t>(1, kGrain / inner), [&](std::int64_t begin, std::int64_t end) {
      std::int64_t index[kMaxDims] = {};
      std::int64_t offsets[N] = {};
      std::int64_t rest = begin;
      for (int i = plan_.ndim - 2; i >= 0; --i) {
        index[i] = rest % plan_.size[i];
        rest /= plan_.size[i];
        for (int k = 0; k < N; ++k) offsets[k] += index[i] * plan_.stride[k][i];
      }
      for (std::int64_t row = begin; row < end; ++row) {
        body(run, offsets, strides, inner);
        for (int i = plan_.ndim - 2; i >= 0; --i) {
          for (int k = 0; k < N; ++k) offsets[k] += plan_.stride[k][i];
          if (++index[i] < plan_.size[i]) break;
          for (int k = 0; k < N; ++k) offsets[k] -= plan_.size[i] * plan_.stride[k][i];
          index[i] = 0;
        }
      }
    });
  }

  StridedPlan<N> plan_;
};

}  // namespace castor
