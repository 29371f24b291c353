// What the CUDA kernels of attention share on the host's side. Two ways of our own lead to a result: tiles (tensor
// cores of compute capability 9.0, 16-bit floats, head sizes 64 and 128, no mask) and rows (everything else, and any
// GPU). What tiles take may be given to cuDNN instead (attention_cudnn_cuda.h).
//
// Delicate: which way is taken depends on dtype, sizes, strides and alignment, so a result may differ in its last bits
// between a packed view that the copy engine can read and one that it cannot; for one layout it is always the same.
#pragma once

#include <cstdint>

#include "core/device/cuda_runtime.h"
#include "core/ops/attention.h"

namespace castor::cuda {

/// Rows [batch, position, head, D] of a view, strides in elements.
struct HeadRows {
  void* data;
  std::int64_t batch, position, head;

  HeadRows() = default;
  explicit HeadRows(const View& view)
      : data(view.data), batch(view.stride[0]), position(view.stride[1]), head(view.stride[2]) {}
  template <class T>
  __host__ __device__ T* at(std::int64_t b, std::int64_t p, std::int64_t h) const {
    return static_cast<T*>(data) + b * batch + p * position + h * head;
  }
};

/// Rows of statistics for each (batch, head) in backward's workspace: two numbers a query, rounded up to whole blocks.
inline constexpr std::int64_t kStatisticsBlock = 64;
inline std::int64_t statistics_rows(const View& q) {
  return (q.size[1] + kStatisticsBlock - 1) / kStatisticsBlock * kStatisticsBlock;
}

/// Whether the tiled kernels can take these operands on this device.
bool tiles_fit(const Cuda& cuda, const AttentionArgs& args);
bool tiles_fit(const Cuda& cuda, const AttentionBackwardArgs& args);

/// attention_cuda_forward.cu; precondition: tiles_fit.
void attention_tiles(const Cuda& cuda, const AttentionArgs& args);
/// attention_cuda_dq.cu: dq, and the statistics of each row that the next one reads; precondition: tiles_fit.
void attention_dq_tiles(const Cuda& cuda, const AttentionBackwardArgs& args);
/// attention_cuda_dkv.cu: dk and dv, after attention_dq_tiles on the same stream and workspace.
void attention_dkv_tiles(const Cuda& cuda, const AttentionBackwardArgs& args);

/// attention_cuda_rows.cu: any dtype, head size, mask and strides of the contract.
void attention_rows(const Cuda& cuda, const AttentionArgs& args);
void attention_backward_rows(const Cuda& cuda, const AttentionBackwardArgs& args);

}  // namespace castor::cuda
