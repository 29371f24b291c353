// The ways to convolve that Castor could have used; they exist for conv_choices.cpp only. Delicate: all start from and
// end in channels-last activations and row-major weights, so the copies that another layout needs are part of its time.
#pragma once

#include <cstdint>

#include "tests/bench/race.h"

namespace castor::bench {

enum class ConvDirection { forward, data_gradient, weight_gradient };

/// A square convolution without groups.
struct ConvShape {
  std::int64_t batch, in_channels, size, out_channels, kernel, stride, padding;
  std::int64_t out_size() const { return (size + 2 * padding - kernel) / stride + 1; }
};

struct ConvBuffers {
  float *x, *weight, *bias, *y;
};

/// oneDNN with activations in the layout it likes best (blocks of channels), copied there and back.
Candidate blocked_candidate(ConvDirection direction, const ConvShape& shape, const ConvBuffers& buffers);

/// oneDNN with activations in row-major order, copied there and back.
Candidate row_major_candidate(ConvDirection direction, const ConvShape& shape, const ConvBuffers& buffers);

}  // namespace castor::bench
