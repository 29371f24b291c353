// Forward attention on any GPU's tensor cores: a warp keeps 32 queries and walks the keys from the last visible block
// to the first. A block of keys is copied while the one before is added up, its values while its scores are made;
// another block on the same multiprocessor multiplies while this one waits. Source: Dao 2023, arXiv:2307.08691.
//
// Floor: 32 rows a warp read 6 KiB of shared memory for 32 products of 16 x 8 x 16, 48 clocks of a multiprocessor's 128
// bytes, and an A100's tensor cores take 64 for them.
#include "core/ops/attention_cuda_warps.cuh"

namespace castor::cuda {
namespace {

struct ForwardWarps {
  HeadRows q, k, v, out;
  AttentionSizes sizes;
  int dim, blocks;  ///< blocks of queries in a head
  float* lse;
};

constexpr int kTiles = 2;  // of 16 rows, in a warp
constexpr int kWarpRows = 16 * kTiles, kRows = kWarpsThreads / 32 * kWarpRows, kKeys = 64;

template <int kDim>
constexpr int kSharedBytes = (kRows + 2 * kKeys) * kDim * 2;

template <class T, int kDim>
__global__ void __launch_bounds__(kWarpsThreads) forward_warps(const __grid_constant__ ForwardWarps p) {
  extern __shared__ __align__(128) unsigned char memory[];
  const std::uint32_t q_tile = shared_address(memory), k_tile = q_tile + kRows * kDim * 2,
                      v_tile = k_tile + kKeys * kDim * 2;
  const AttentionSizes& s = p.sizes;
  const WarpPlace place;
  // The longest rows of a head first.
  const int at = static_cast<int>(blockIdx.x) / p.blocks, tile = p.blocks - 1 - static_cast<int>(blockIdx.x) % p.blocks;
  const int batch = at / s.heads, head = at % s.heads, key_head = head / s.group;
  const int begin = tile * kRows, own_row = place.warp * kWarpRows, first = begin + own_row;
  const auto blocks_before = [&](int end) {  // blocks of keys that queries before `end` see
    return (s.visible_keys(min(end, s.queries) - 1) + kKeys - 1) / kKeys;
  };
  const int blocks = blocks_before(begin + kRows), own = first < s.queries ? blocks_before(first + kWarpRows) : 0;
  int limit[kTiles][2];
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) limit[m][h] = s.visible_keys(first + 16 * m + place.row + 8 * h) - 1;
  }
  const auto copy_keys = [&](std::uint32_t to, const HeadRows& from, int block) {
    copy_tile<T, kKeys, kDim>(to, from, batch, key_head, block * kKeys, s.keys, p.dim);
  };
  float out[kTiles][kDim / 2] = {};
  RunningSoftmax softmax[kTiles];
  if (blocks > 0) {
    copy_tile<T, kRows, kDim>(q_tile, p.q, batch, head, begin, s.queries, p.dim);
    copy_keys(k_tile, p.k, blocks - 1);
    end_copies();
  }
  for (int j = blocks - 1; j >= 0; --j) {
    wait_copies<0>();
    __syncthreads();  // the keys are there, and the values before them no longer needed
    copy_keys(v_tile, p.v, j);
    end_copies();
    const bool is_seen = j < own;
    float scores[kTiles][kKeys / 2];
    if (is_seen) multiply_rows<T, kDim>(scores, q_tile, own_row, k_tile);
    wait_copies<0>();
    __syncthreads();
    if (j > 0) copy_keys(k_tile, p.k, j - 1);
    end_copies();
    if (!is_seen) continue;
    std::uint32_t weights[kTiles][kKeys / 16][4];
    const bool is_whole = (j + 1) * kKeys <= s.visible_keys(first);
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      if (!is_whole) mask_keys(scores[m], j * kKeys, place.column, limit[m]);
      float shrink[2];
      softmax[m].add(scores[m], s.scale_log2, shrink);
#pragma unroll
      for (int i = 0; i < kDim / 2; ++i) out[m][i] *= shrink[i / 2 % 2];
      as_operand<T>(scores[m], weights[m]);
    }
    add_product_of<T, kDim>(out, weights, v_tile);
  }
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
    float factor[2], lse[2];
    softmax[m].finish(s.scale, factor, lse);
    T* rows[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = first + 16 * m + place.row + 8 * h;
      rows[h] = row < s.queries ? p.out.at<T>(batch, row, head) : nullptr;
      if (rows[h] != nullptr && place.column == 0) p.lse[static_cast<std::int64_t>(at) * s.queries + row] = lse[h];
    }
    store_accumulators<T, kDim>(out[m], factor, rows, p.dim);
  }
}

}  // namespace

void attention_warps(const Cuda& cuda, const AttentionArgs& args) {
  ForwardWarps params;
  params.q = HeadRows(args.q);
  params.k = HeadRows(args.k);
  params.v = HeadRows(args.v);
  params.out = HeadRows(args.out);
  params.sizes = AttentionSizes(args);
  params.dim = static_cast<int>(args.q.size[3]);
  params.blocks = static_cast<int>((args.q.size[1] + kRows - 1) / kRows);
  params.lse = args.lse.as<float>();
  visit_warps(args.q, [&](auto tag, auto dim) {
    constexpr int kDim = decltype(dim)::value;
    launch_warps(forward_warps<typename decltype(tag)::type, kDim>, params, params.blocks,
                 args.q.size[0] * args.q.size[2], kSharedBytes<kDim>, AttentionArgs::kName, cuda);
  });
}

}  // namespace castor::cuda
