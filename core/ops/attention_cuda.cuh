// What the CUDA kernels of attention share on the host's side. Two ways of our own lead to a result: tiles (tensor
// cores of compute capability 9.0, 16-bit floats, head sizes 64 and 128, no mask) and rows (everything else, and any
// GPU). What tiles take forward may be given to cuDNN instead (attention_cudnn_cuda.h).
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

/// Gradients of scores in 16 bits, which the kernel of dk and dv leaves in the workspace for that of dq: for each head,
/// by blocks of 64 keys, the blocks of 64 queries of which one sees one of the keys. A block lies as a warpgroup holds
/// it as the left operand [keys, queries] of a product.
struct SlopeBlocks {
  static constexpr int kRows = 64;
  static constexpr int kBytes = 2 * kRows * kRows;
  int key_blocks, query_blocks;
  int lead;  ///< under a causal cut key block b is seen from query block b - lead on
  bool is_causal;

  SlopeBlocks() = default;
  SlopeBlocks(std::int64_t queries, std::int64_t keys, bool causal)
      : key_blocks(blocks_of(keys)), query_blocks(blocks_of(queries)), is_causal(causal) {
    const std::int64_t shift = keys - queries;
    lead = static_cast<int>(shift > 0 ? (shift + kRows - 1) / kRows : shift / kRows);
  }

  __host__ __device__ int first_query_block(int key_block) const {
    return is_causal && key_block > lead ? key_block - lead : 0;
  }
  /// As many key blocks, from the first on, does a block of queries see.
  __host__ __device__ int seen_key_blocks(int query_block) const {
    const int seen = is_causal ? query_block + lead + 1 : key_blocks;
    return seen < 0 ? 0 : seen < key_blocks ? seen : key_blocks;
  }
  /// Where a block lies among those of its head; it must be one that is there.
  __host__ __device__ std::int64_t place(int key_block, int query_block) const {
    const std::int64_t b = key_block, m = b > lead ? b - lead : 0;
    const std::int64_t left_out = !is_causal ? 0 : lead >= 0 ? m * (m - 1) / 2 : b * (b - 1) / 2 - lead * b;
    return b * query_blocks - left_out + query_block - first_query_block(key_block);
  }
  /// Of a head.
  std::int64_t count() const { return place(key_blocks, first_query_block(key_blocks)); }

 private:
  static int blocks_of(std::int64_t rows) { return static_cast<int>((rows + kRows - 1) / kRows); }
};

/// Batch and key head as one number, [first, first + count): what one launch of backward's kernels is for.
struct HeadRange {
  std::int64_t first, count;
};
/// Of how many heads, batch and key head as one number, the gradients of scores are kept at a time: of as many as keep
/// the GPU busy, to save memory. 0: they take too much of it, or are too few to be worth it; they are made twice.
std::int64_t kept_heads(const AttentionBackwardArgs& args);

/// Whether the tiled kernels can take these operands on this device.
bool tiles_fit(const Cuda& cuda, const AttentionArgs& args);
bool tiles_fit(const Cuda& cuda, const AttentionBackwardArgs& args);

/// attention_cuda_forward.cu; precondition: tiles_fit.
void attention_tiles(const Cuda& cuda, const AttentionArgs& args);
/// attention_cuda_statistics.cu: for each row of queries, what the other kernels of backward need; precondition:
/// tiles_fit.
void attention_statistics(const Cuda& cuda, const AttentionBackwardArgs& args);
/// attention_cuda_dkv.cu: dk and dv, after attention_statistics on the same stream and workspace. `slopes`: where
/// gradients of scores are left, or null.
void attention_dkv_tiles(const Cuda& cuda, const AttentionBackwardArgs& args, HeadRange heads, void* slopes);
/// attention_cuda_dq_slopes.cu: dq from what attention_dkv_tiles left for the same heads.
void attention_dq_slopes(const Cuda& cuda, const AttentionBackwardArgs& args, HeadRange heads, const void* slopes);
/// attention_cuda_dq.cu: dq of all heads, with gradients of scores made once more; after attention_statistics.
void attention_dq_tiles(const Cuda& cuda, const AttentionBackwardArgs& args);

/// attention_cuda_rows.cu: any dtype, head size, mask and strides of the contract.
void attention_rows(const Cuda& cuda, const AttentionArgs& args);
void attention_backward_rows(const Cuda& cuda, const AttentionBackwardArgs& args);

}  // namespace castor::cuda
