// The GEMM routines that Castor could have used: oneDNN's inner product and its BLAS call, and Eigen. They exist for
// gemm_choices.cpp only. Delicate: inner product covers the three products of a linear layer, each by its own
// primitive.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace castor::bench {

/// The three products of a linear layer over x [m, k], weight [n, k] and y [m, n], all row-major f32.
enum class LinearForm { forward, data_gradient, weight_gradient };

/// One way to compute one form on fixed buffers.
struct GemmCandidate {
  std::string name;
  std::function<void()> run;
};

/// The operands of a linear layer; the form says which one is written.
struct LinearBuffers {
  std::int64_t m, n, k;
  float *x, *weight, *y;
};

/// oneDNN's inner product; `packed` lets it choose the layout of the weights and pays for the copies.
GemmCandidate inner_product_candidate(LinearForm form, const LinearBuffers& buffers, bool packed);

/// dnnl_sgemm with the operands as they lie.
GemmCandidate sgemm_candidate(LinearForm form, const LinearBuffers& buffers);

/// Eigen's product of maps, threads included.
GemmCandidate eigen_candidate(LinearForm form, const LinearBuffers& buffers);

}  // namespace castor::bench
