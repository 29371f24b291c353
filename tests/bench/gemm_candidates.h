// The GEMM routines that Castor could have used: oneDNN's inner product and its BLAS call, and Eigen. They exist for
// gemm_choices.cpp only. Delicate: inner product covers the three products of a linear layer, each by its own
// primitive.
#pragma once

#include <cstdint>

#include "tests/bench/race.h"

namespace castor::bench {

/// The three products of a linear layer over x [m, k], weight [n, k] and y [m, n], all row-major f32.
enum class LinearForm { forward, data_gradient, weight_gradient };

/// The operands of a linear layer; the form says which one is written.
struct LinearBuffers {
  std::int64_t m, n, k;
  float *x, *weight, *y;
};

/// oneDNN's inner product; `packed` lets it choose the layout of the weights and pays for the copies.
Candidate inner_product_candidate(LinearForm form, const LinearBuffers& buffers, bool packed);

/// dnnl_sgemm with the operands as they lie.
Candidate sgemm_candidate(LinearForm form, const LinearBuffers& buffers);

/// Eigen's product of maps, threads included.
Candidate eigen_candidate(LinearForm form, const LinearBuffers& buffers);

}  // namespace castor::bench
