// Which kernels do an attention on a GPU: this program's own, or cuDNN's in a build that has it, by a measured table
// (attention_cudnn_cuda.cpp). For what must know or say it: a run's numerics key, tests that force one side, and the
// program that measures the table.
#pragma once

#include <cstddef>
#include <string>

#include "core/device/device.h"
#include "core/ops/attention.h"

namespace castor {

/// Whose kernels are asked for.
enum class AttentionKernels {
  measured,  ///< the faster ones, by the table
  own,
  own_kept,   ///< the same, with gradients of scores kept for dq wherever there is memory for that
  own_twice,  ///< the same, with gradients of scores made once more for dq
  own_warps,  ///< those for any tensor cores, also where there are others
  cudnn,      ///< forward by cuDNN wherever it takes the operands; backward as measured
};

/// Sets what this thread asks for while the scope lives; inner scopes win. For tests and measuring.
class AttentionKernelScope {
 public:
  explicit AttentionKernelScope(AttentionKernels kernels);
  ~AttentionKernelScope();
  AttentionKernelScope(const AttentionKernelScope&) = delete;
  AttentionKernelScope& operator=(const AttentionKernelScope&) = delete;

 private:
  AttentionKernels outer_;
};

/// What the innermost scope of this thread asks for; measured without one.
AttentionKernels attention_kernels();

/// The library whose kernels attention on `device` may use beside this program's, as "cudnn 9.19.0"; empty for none.
std::string attention_library(Device device);
std::string attention_library(const Cuda& cuda);

}  // namespace castor
