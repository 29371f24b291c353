// What the tiled kernels share: how work is cut and handed out, the ring of tiles between the warp that loads and
// the warpgroups that compute, and where a warpgroup's results go.
//
// A block stays on its multiprocessor and takes one work item after another: an item is a tile of rows (queries in
// forward and dq, keys in dk and dv) and, under a causal cut, its mirror image in the same head, because the two
// together cost the same for every item. Its last warpgroup only loads; each of the others owns 64 rows and keeps all
// its sums in registers, so no result depends on which block or warpgroup came first.
//
// Of an accumulator of [64, N] each warp of a warpgroup holds 16 rows, as attention_cuda_scores.cuh says.
#pragma once

#include <algorithm>

#include "core/ops/attention_cuda.cuh"
#include "core/ops/attention_cuda_wgmma.cuh"
#include "core/ops/rows_cuda.cuh"

namespace castor::cuda {

inline constexpr int kGroupRows = 64;  ///< rows of a warpgroup

/// Numbers that all tiled kernels take.
struct TileSizes : AttentionSizes {
  using AttentionSizes::AttentionSizes;
  int blocks, head_items, items;  ///< tiles of rows in a head, work items in a head and in all
  int first;                      ///< the head (batch and head as one number) that items begin with
};

/// For `heads` of the tensor that has `rows` rows.
template <class Args>
TileSizes tile_sizes(const Args& args, std::int64_t rows, std::int64_t rows_in_tile, HeadRange heads) {
  TileSizes s(args);
  s.blocks = static_cast<int>((rows + rows_in_tile - 1) / rows_in_tile);
  s.head_items = args.causal ? (s.blocks + 1) / 2 : s.blocks;
  s.items = s.head_items * static_cast<int>(heads.count);
  s.first = static_cast<int>(heads.first);
  return s;
}

/// All heads of a tensor.
inline HeadRange all_heads(const View& x) { return {0, x.size[0] * x.size[2]}; }

/// Calls body(batch and head as one number, tile) for all tiles of this block.
template <class Body>
__device__ void for_tiles(const TileSizes& s, Body body) {
  for (int item = static_cast<int>(blockIdx.x); item < s.items; item += static_cast<int>(gridDim.x)) {
    const int head = s.first + item / s.head_items, tile = item % s.head_items, mirror = s.blocks - 1 - tile;
    body(head, mirror);
    if (s.is_causal && mirror != tile) body(head, tile);
  }
}

/// Slots of shared memory that are filled and emptied in turn; `count` is how many times before.
template <int kSlots>
struct Ring {
  std::uint32_t full, empty;  ///< addresses of kSlots barriers each
  __device__ static int slot(std::uint32_t count) { return static_cast<int>(count % kSlots); }
  __device__ std::uint32_t full_barrier(std::uint32_t count) const { return full + 8 * (count % kSlots); }
  __device__ void wait_full(std::uint32_t count) const { wait_phase(full_barrier(count), count / kSlots & 1); }
  __device__ void wait_empty(std::uint32_t count) const {
    wait_phase(empty + 8 * (count % kSlots), (count / kSlots & 1) ^ 1);
  }
  /// By every warp that read the slot, once it is done.
  __device__ void release(std::uint32_t count) const {
    __syncwarp();
    if (threadIdx.x % 32 == 0) arrive(empty + 8 * (count % kSlots));
  }
  /// By every thread that read the slot with its own loads.
  __device__ void release_each(std::uint32_t count) const { arrive(empty + 8 * (count % kSlots)); }
  /// `releases`: how many calls of one of the two make a slot empty (a warp's `release` is one).
  __device__ void init(int releases) const {
    for (int i = 0; i < kSlots; ++i) {
      init_barrier(full + 8 * i, 1);
      init_barrier(empty + 8 * i, releases);
    }
  }
};

/// Begins the loads of [kRows, kDim] at `position`, panel by panel.
template <int kRows, int kDim>
__device__ void load_tile(std::uint32_t to, const CUtensorMap& map, std::uint32_t barrier, int head, int position,
                          int batch) {
#pragma unroll
  for (int column = 0; column < kDim; column += kPanelColumns)
    load_box(to + column / kPanelColumns * kRows * kRowBytes, map, barrier, column, head, position, batch);
}

/// Where a thread's accumulators lie in its warpgroup's 64 rows.
struct OwnPlace {
  int warpgroup, row, column;  ///< row of half 0, and column in each 8
  __device__ OwnPlace()
      : warpgroup(__shfl_sync(0xFFFFFFFFu, static_cast<int>(threadIdx.x) / kWarpgroup, 0)),
        row(static_cast<int>(threadIdx.x % kWarpgroup / 32 * 16 + threadIdx.x % 32 / 4)),
        column(static_cast<int>(threadIdx.x % 4 * 2)) {}
};

/// Writes a warpgroup's [64, kDim] accumulators times `factor` to the rows from `first` on of a head, up to the last of
/// `rows`.
template <class T, int kDim>
__device__ void store_head_rows(const float (&c)[kDim / 2], float factor, const HeadRows& to, int batch, int head,
                                int first, int rows, const OwnPlace& place) {
  const float factors[2] = {factor, factor};
  T* begins[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = first + place.row + 8 * h;
    begins[h] = row < rows ? to.at<T>(batch, row, head) : nullptr;
  }
  store_accumulators<T, kDim>(c, factors, begins);
}

/// The copy engine's view of [B, T, H, D], read in boxes of 64 columns by `rows` positions.
CUtensorMap tensor_map(const View& x, int rows, const char* op, Device device);

/// Blocks to launch: as many as there are multiprocessors, unless there is less to do.
unsigned resident_blocks(int items, const char* op, Device device);

/// Launches a tiled kernel with its shared memory.
template <class Params>
void launch_tiles(void (*kernel)(Params), const Params& params, int threads, int shared_bytes, const char* op,
                  const Cuda& cuda) {
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes), op, cuda.device);
  kernel<<<resident_blocks(params.sizes.items, op, cuda.device), threads, shared_bytes, stream_of(cuda)>>>(params);
  check_cuda(cudaGetLastError(), op, cuda.device);
}

/// Calls f(TypeTag<T>{}, std::integral_constant<int, D>{}) for what the tiled kernels take.
template <class F>
void visit_tiled(const View& q, F f) {
  const auto with_dim = [&](auto tag) {
    q.size[3] == 64 ? f(tag, std::integral_constant<int, 64>{}) : f(tag, std::integral_constant<int, 128>{});
  };
  q.dtype == DType::bf16 ? with_dim(TypeTag<BFloat16>{}) : with_dim(TypeTag<Half>{});
}

}  // namespace castor::cuda
