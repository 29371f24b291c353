// What the CUDA kernels of attention share on the host's side. Three ways of our own lead to a result: tiles (tensor
// cores of compute capability 9.0, 16-bit floats, head sizes 64 and 128, no mask), warps (any tensor cores, 16-bit
// floats, head sizes up to 128 in eights, no mask) and rows (everything else). What tiles take forward may be given to
// cuDNN instead (attention_cudnn_cuda.h).
//
// Delicate: which way is taken depends on dtype, sizes, strides and alignment, so a result may differ in its last bits
// between a packed view that the copy engine can read and one that it cannot; for one layout it is always the same.
#pragma once

#include <cstdint>

#include "core/device/cuda_runtime.h"
#include "core/ops/attention.h"
#include "core/ops/attention_slopes.h"

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

/// Batch and key head as one number, [first, first + count): what one launch of backward's kernels is for.
struct HeadRange {
  std::int64_t first, count;
};
/// Of how many heads, batch and key head as one number, the gradients of scores are kept at a time: of as many as keep
/// the GPU busy, to save memory. 0: they take too much of it, or are too few to be worth it; they are made twice.
std::int64_t kept_heads(const AttentionBackwardArgs& args);

/// Whose these operands are on this device.
enum class AttentionWay { tiles, warps, rows };
AttentionWay attention_way(const Cuda& cuda, const AttentionArgs& args);
AttentionWay attention_way(const Cuda& cuda, const AttentionBackwardArgs& args);

/// attention_cuda_forward.cu.
void attention_tiles(const Cuda& cuda, const AttentionArgs& args);
/// attention_cuda_statistics.cu: for each row of queries, what tiles and warps need for backward.
void attention_statistics(const Cuda& cuda, const AttentionBackwardArgs& args);
/// attention_cuda_dkv.cu: dk and dv, after attention_statistics on the same stream and workspace. `slopes`: where
/// gradients of scores are left, or null.
void attention_dkv_tiles(const Cuda& cuda, const AttentionBackwardArgs& args, HeadRange heads, void* slopes);
/// attention_cuda_dq_slopes.cu: dq from what attention_dkv_tiles left for the same heads.
void attention_dq_slopes(const Cuda& cuda, const AttentionBackwardArgs& args, HeadRange heads, const void* slopes);
/// attention_cuda_dq.cu: dq of all heads, with gradients of scores made once more; after attention_statistics.
void attention_dq_tiles(const Cuda& cuda, const AttentionBackwardArgs& args);

/// attention_cuda_warps_forward.cu.
void attention_warps(const Cuda& cuda, const AttentionArgs& args);
/// attention_cuda_warps_backward.cu: all gradients, after attention_statistics.
void attention_backward_warps(const Cuda& cuda, const AttentionBackwardArgs& args);

/// attention_cuda_rows.cu: any dtype, head size, mask and strides of the contract.
void attention_rows(const Cuda& cuda, const AttentionArgs& args);
void attention_backward_rows(const Cuda& cuda, const AttentionBackwardArgs& args);

}  // namespace castor::cuda
