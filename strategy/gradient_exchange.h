// How the gradients of several ranks become one: what a plugin gives the optimizer wrapper.
//
// Delicate: contributions are added one by one in the order of the global micro-batches (micro-step m, then rank r), in
// f32, and the sum is divided once, so that a window's gradient has the same bits however its micro-batches were split
// over ranks and micro-steps (1 x 4, 2 x 2, 4 x 1).
#pragma once

#include <cstdint>

#include "autograd/graph.h"

namespace castor::strategy {

/// Receives the gradients of each backward. All ranks make the same calls in the same order; each may throw CommError.
class GradientExchange : public autograd::GradientSink {
 public:
  /// Before a micro-step's backward.
  ///   position  of the micro-step in its accumulation window, from 0
  virtual void begin_micro_step(std::int64_t position) = 0;
  /// After it: every parameter's contribution is on its way or added. A parameter that got no gradient counts as zero.
  virtual void end_micro_step() = 0;
  /// At the window's end: parameters' grad() become the sum divided by `micro_batches` (of all ranks together).
  virtual void finish_window(std::int64_t micro_batches) = 0;
};

}  // namespace castor::strategy
