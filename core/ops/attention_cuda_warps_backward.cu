// Gradients of attention on any GPU's tensor cores: one kernel for dk and dv, with keys outside, one for dq, with
// queries outside. Both make probabilities again from the logsumexp and gradients of scores from those, so that nothing
// is added from several blocks: seven products where five would do. Before them attention_cuda_statistics.cu.
//
// As in Hopper's kernels scores are made transposed for dk and dv (a row for a key), so that probabilities and
// gradients of scores are left operands as they lie in registers.
#include "core/ops/attention_cuda_warps.cuh"

namespace castor::cuda {
namespace {

struct BackwardWarps {
  HeadRows q, k, v, dout, dq, dk, dv;
  AttentionSizes sizes;
  int dim, blocks;                ///< blocks of own rows in a head
  const float *lse_log2, *delta;  ///< [batch and head, statistics]
  int statistics;
};

constexpr int kWarps = kWarpsThreads / 32;

/// Keys outside.
template <int kDim>
struct DkvShape {
  static constexpr int kTiles = 1, kWarpRows = 16 * kTiles, kRows = kWarps * kWarpRows;
  static constexpr int kQueries = static_cast<int>(kStatisticsBlock);
  static constexpr int kStages = kDim <= 64 ? 2 : 1;  ///< blocks of queries in memory; one leaves room for two blocks
  static constexpr int kTileBytes = kQueries * kDim * 2, kKeyBytes = kRows * kDim * 2, kStatisticBytes = kQueries * 4;
  static constexpr int kStageBytes = 2 * (kTileBytes + kStatisticBytes);
  static constexpr int kSharedBytes = 2 * kKeyBytes + kStages * kStageBytes;
};

__device__ inline float2 pair_at(std::uint32_t address) {
  float2 pair;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(pair.x), "=f"(pair.y) : "r"(address) : "memory");
  return pair;
}

template <class T, int kDim>
__global__ void __launch_bounds__(kWarpsThreads) dkv_warps(const __grid_constant__ BackwardWarps p) {
  using Shape = DkvShape<kDim>;
  constexpr int kQueries = Shape::kQueries, kTiles = Shape::kTiles, kStages = Shape::kStages;
  extern __shared__ __align__(128) unsigned char memory[];
  const std::uint32_t k_tile = shared_address(memory), v_tile = k_tile + Shape::kKeyBytes,
                      stages = v_tile + Shape::kKeyBytes;
  const AttentionSizes& s = p.sizes;
  const WarpPlace place;
  const int key_heads = s.heads / s.group, at = static_cast<int>(blockIdx.x) / p.blocks;
  const int batch = at / key_heads, key_head = at % key_heads;
  const int begin = static_cast<int>(blockIdx.x) % p.blocks * Shape::kRows, own_row = place.warp * Shape::kWarpRows,
            first = begin + own_row;
  const int query_blocks = (s.queries + kQueries - 1) / kQueries,
            first_block = min(s.first_query(begin) / kQueries, query_blocks), seeing = query_blocks - first_block;
  // Block `turn` of queries, those of all heads of the group in order, to its stage: q, dout and their statistics.
  const auto copy_queries = [&](int turn) {
    if (turn < s.group * seeing) {
      const int head = key_head * s.group + turn / seeing, query = (first_block + turn % seeing) * kQueries;
      const std::uint32_t to = stages + turn % kStages * Shape::kStageBytes;
      copy_tile<T, kQueries, kDim>(to, p.q, batch, head, query, s.queries, p.dim);
      copy_tile<T, kQueries, kDim>(to + Shape::kTileBytes, p.dout, batch, head, query, s.queries, p.dim);
      constexpr int kWords = kQueries / 4;
      const int word = static_cast<int>(threadIdx.x);
      if (word < 2 * kWords) {
        const float* const from = (word < kWords ? p.lse_log2 : p.delta) +
                                  (static_cast<std::int64_t>(batch) * s.heads + head) * p.statistics + query;
        copy_ahead(memory + (to - k_tile) + 2 * Shape::kTileBytes + word * 16, from + word % kWords * 4);
      }
    }
    end_copies();
  };
  copy_tile<T, Shape::kRows, kDim>(k_tile, p.k, batch, key_head, begin, s.keys, p.dim);
  copy_tile<T, Shape::kRows, kDim>(v_tile, p.v, batch, key_head, begin, s.keys, p.dim);
  copy_queries(0);
  float dk[kTiles][kDim / 2] = {}, dv[kTiles][kDim / 2] = {};
  for (int turn = 0; turn < s.group * seeing; ++turn) {
    wait_copies<0>();
    __syncthreads();
    if constexpr (kStages == 2) copy_queries(turn + 1);
    const int query = (first_block + turn % seeing) * kQueries;
    const std::uint32_t q_tile = stages + turn % kStages * Shape::kStageBytes, dout_tile = q_tile + Shape::kTileBytes,
                        lse = dout_tile + Shape::kTileBytes, delta = lse + Shape::kStatisticBytes;
    // Queries before the warp's first key see none of its keys.
    if (first < s.keys && query + kQueries > s.first_query(first)) {
      float scores[kTiles][kQueries / 2], dp[kTiles][kQueries / 2];
      std::uint32_t left[kTiles][kQueries / 16][4];
      multiply_rows<T, kDim>(scores, k_tile, own_row, q_tile);
      const bool is_whole = query >= s.first_query(first + Shape::kWarpRows - 1) && first + Shape::kWarpRows <= s.keys;
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        // The column, counted from this thread's first, from which on queries see the key of either row.
        int from[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int key = first + 16 * m + place.row + 8 * h;
          from[h] = key >= s.keys ? kQueries : s.first_query(key) - query - place.column;
        }
#pragma unroll
        for (int j = 0; j < kQueries / 8; ++j) {
          const float2 pair = pair_at(lse + (j * 8 + place.column) * 4);
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            float weight = exp2_16(fmaf(scores[m][4 * j + e], s.scale_log2, e % 2 == 0 ? -pair.x : -pair.y));
            if (!is_whole && 8 * j + e % 2 < from[e / 2]) weight = 0;
            scores[m][4 * j + e] = weight;
          }
        }
        as_operand<T>(scores[m], left[m]);
      }
      add_product_of<T, kDim>(dv, left, dout_tile);
      multiply_rows<T, kDim>(dp, v_tile, own_row, dout_tile);
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
#pragma unroll
        for (int j = 0; j < kQueries / 8; ++j) {
          const float2 pair = pair_at(delta + (j * 8 + place.column) * 4);
#pragma unroll
          for (int e = 0; e < 4; ++e)
            dp[m][4 * j + e] = scores[m][4 * j + e] * (dp[m][4 * j + e] - (e % 2 == 0 ? pair.x : pair.y));
        }
        as_operand<T>(dp[m], left[m]);
      }
      add_product_of<T, kDim>(dk, left, q_tile);
    }
    if constexpr (kStages == 1) {
      __syncthreads();
      copy_queries(turn + 1);
    }
  }
  store_tiles<T, kDim>(dk, s.scale, p.dk, batch, key_head, first, s.keys, p.dim, place);
  store_tiles<T, kDim>(dv, 1, p.dv, batch, key_head, first, s.keys, p.dim, place);
}

/// Queries outside.
template <int kDim>
struct DqShape {
  static constexpr int kTiles = kDim <= 64 ? 2 : 1, kWarpRows = 16 * kTiles, kRows = kWarps * kWarpRows, kKeys = 64;
  static constexpr int kTileBytes = kKeys * kDim * 2, kQueryBytes = kRows * kDim * 2;
  static constexpr int kSharedBytes = 2 * kQueryBytes + 2 * kTileBytes;
};

template <class T, int kDim>
__global__ void __launch_bounds__(kWarpsThreads) dq_warps(const __grid_constant__ BackwardWarps p) {
  using Shape = DqShape<kDim>;
  constexpr int kKeys = Shape::kKeys, kTiles = Shape::kTiles, kRows = Shape::kRows;
  extern __shared__ __align__(128) unsigned char memory[];
  const std::uint32_t q_tile = shared_address(memory), dout_tile = q_tile + Shape::kQueryBytes,
                      k_tile = dout_tile + Shape::kQueryBytes, v_tile = k_tile + Shape::kTileBytes;
  const AttentionSizes& s = p.sizes;
  const WarpPlace place;
  const int at = static_cast<int>(blockIdx.x) / p.blocks, tile = p.blocks - 1 - static_cast<int>(blockIdx.x) % p.blocks;
  const int batch = at / s.heads, head = at % s.heads, key_head = head / s.group;
  const int begin = tile * kRows, own_row = place.warp * Shape::kWarpRows, first = begin + own_row;
  const auto blocks_before = [&](int end) { return (s.visible_keys(min(end, s.queries) - 1) + kKeys - 1) / kKeys; };
  const int blocks = blocks_before(begin + kRows),
            own = first < s.queries ? blocks_before(first + Shape::kWarpRows) : 0;
  int limit[kTiles][2];
  float lse[kTiles][2], delta[kTiles][2];
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = first + 16 * m + place.row + 8 * h;
      const std::int64_t known = static_cast<std::int64_t>(at) * p.statistics + min(row, s.queries - 1);
      limit[m][h] = s.visible_keys(row) - 1;
      lse[m][h] = p.lse_log2[known];
      delta[m][h] = p.delta[known];
    }
  }
  const auto copy_keys = [&](std::uint32_t to, const HeadRows& from, int block) {
    copy_tile<T, kKeys, kDim>(to, from, batch, key_head, block * kKeys, s.keys, p.dim);
  };
  float dq[kTiles][kDim / 2] = {};
  if (blocks > 0) {
    copy_tile<T, kRows, kDim>(q_tile, p.q, batch, head, begin, s.queries, p.dim);
    copy_tile<T, kRows, kDim>(dout_tile, p.dout, batch, head, begin, s.queries, p.dim);
    copy_keys(v_tile, p.v, blocks - 1);
    end_copies();
  }
  for (int j = blocks - 1; j >= 0; --j) {
    wait_copies<0>();
    __syncthreads();  // the values are there, and the keys before them no longer needed
    copy_keys(k_tile, p.k, j);
    end_copies();
    const bool is_seen = j < own;
    float scores[kTiles][kKeys / 2], dp[kTiles][kKeys / 2];
    if (is_seen) multiply_rows<T, kDim>(dp, dout_tile, own_row, v_tile);
    wait_copies<0>();
    __syncthreads();
    if (j > 0) copy_keys(v_tile, p.v, j - 1);
    end_copies();
    if (!is_seen) continue;
    multiply_rows<T, kDim>(scores, q_tile, own_row, k_tile);
    std::uint32_t slopes[kTiles][kKeys / 16][4];
    const bool is_whole = (j + 1) * kKeys <= s.visible_keys(first);
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int i = 0; i < kKeys / 2; ++i) scores[m][i] = exp2_16(fmaf(scores[m][i], s.scale_log2, -lse[m][i / 2 % 2]));
      if (!is_whole) mask_keys(scores[m], j * kKeys, place.column, limit[m], 0.0f);
#pragma unroll
      for (int i = 0; i < kKeys / 2; ++i) dp[m][i] = scores[m][i] * (dp[m][i] - delta[m][i / 2 % 2]);
      as_operand<T>(dp[m], slopes[m]);
    }
    add_product_of<T, kDim>(dq, slopes, k_tile);
  }
  store_tiles<T, kDim>(dq, s.scale, p.dq, batch, head, first, s.queries, p.dim, place);
}

}  // namespace

void attention_backward_warps(const Cuda& cuda, const AttentionBackwardArgs& args) {
  const std::int64_t batch = args.q.size[0], heads = args.q.size[2];
  BackwardWarps params;
  params.q = HeadRows(args.q);
  params.k = HeadRows(args.k);
  params.v = HeadRows(args.v);
  params.dout = HeadRows(args.dout);
  params.dq = HeadRows(args.dq);
  params.dk = HeadRows(args.dk);
  params.dv = HeadRows(args.dv);
  params.sizes = AttentionSizes(args);
  params.dim = static_cast<int>(args.q.size[3]);
  params.statistics = static_cast<int>(statistics_rows(args.q));
  params.lse_log2 = args.workspace.as<float>();
  params.delta = params.lse_log2 + batch * heads * statistics_rows(args.q);
  visit_warps(args.q, [&](auto tag, auto dim) {
    using T = typename decltype(tag)::type;
    constexpr int kDim = decltype(dim)::value;
    const auto launch = [&](auto kernel, auto shape, std::int64_t rows, std::int64_t of_heads) {
      using Shape = decltype(shape);
      params.blocks = static_cast<int>((rows + Shape::kRows - 1) / Shape::kRows);
      launch_warps(kernel, params, params.blocks, batch * of_heads, Shape::kSharedBytes, AttentionBackwardArgs::kName,
                   cuda);
    };
    launch(dkv_warps<T, kDim>, DkvShape<kDim>{}, args.k.size[1], args.k.size[2]);
    launch(dq_warps<T, kDim>, DqShape<kDim>{}, args.q.size[1], heads);
  });
}

}  // namespace castor::cuda
