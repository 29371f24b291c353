// Attention written as a graph of cuDNN's operations, as its fused kernels recognise it.
//
// Delicate: the library matches patterns, so which operations there are, in which order, which tensors have types of
// their own and how inner ones lie is all part of the request, even where other graphs would mean the same.
#pragma once

#include <memory>
#include <vector>

#include "core/device/cuda_cudnn.h"
#include "core/device/cuda_cudnn_library.h"

namespace castor::cudnn {

/// What an address or a number is given for when a plan runs.
enum Operand : std::int64_t {
  kQ = 1,
  kK,
  kV,
  kOut,
  kLse,
  kScale,      ///< f32 on the host
  kMasked,     ///< f32 on the host: minus infinity
  kFirstInner  ///< tensors that no memory holds
};

/// The finished graph and everything that it refers to.
struct AttentionGraph {
  std::vector<std::unique_ptr<Descriptor>> parts;
  std::unique_ptr<Descriptor> graph;
};

/// Throws Refusal.
AttentionGraph attention_graph(const CudnnAttentionProblem& problem, cudnnHandle_t handle);

}  // namespace castor::cudnn
