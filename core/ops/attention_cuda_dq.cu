// dq of attention in tiles where gradients of scores are too many to be kept (attention_cuda_dq_slopes.cu), with
// queries outside as in forward: probabilities come again from the logsumexp, gradients of scores are the left operand
// of the next product as they lie in registers, and each query's dq is summed by one warpgroup. That makes seven
// products for backward in all where five would do, but takes no memory, and nothing is added from several blocks.
#include "core/ops/attention_cuda_tiles.cuh"

namespace castor::cuda {
namespace {

struct DqTiles {
  CUtensorMap q, k, v, dout;
  TileSizes sizes;
  HeadRows dq;
  const float *lse_log2, *delta;  ///< [batch and head, statistics_rows]
  int statistics;
};

template <int kDim>
struct DqShape {
  static constexpr int kGroups = 2, kKeys = 64, kStages = 4;
  static constexpr int kRows = kGroups * kGroupRows, kThreads = kWarpgroup * (kGroups + 1);
  static constexpr int kLoaderRegisters = 24, kRegisters = 240;
  static constexpr int kTileBytes = kKeys * kDim * 2, kQueryBytes = kRows * kDim * 2;
  static constexpr int kBarriers = 2 + 4 * kStages;
  static constexpr int kSharedBytes = 1024 + 2 * kQueryBytes + 2 * kStages * kTileBytes + 8 * kBarriers;
};

template <class T, int kDim>
__global__ void __launch_bounds__(DqShape<kDim>::kThreads, 1) dq_tiles(const __grid_constant__ DqTiles p) {
  using Shape = DqShape<kDim>;
  constexpr int kKeys = Shape::kKeys, kRows = Shape::kRows, kStages = Shape::kStages;
  constexpr int kPanel = kKeys * kRowBytes, kQueryPanel = kRows * kRowBytes;
  extern __shared__ unsigned char memory[];
  const std::uint32_t q_tile = (shared_address(memory) + 1023) & ~1023u, dout_tile = q_tile + Shape::kQueryBytes,
                      k_tiles = dout_tile + Shape::kQueryBytes, v_tiles = k_tiles + kStages * Shape::kTileBytes,
                      barriers = v_tiles + kStages * Shape::kTileBytes;
  const Ring<1> q_ring{barriers, barriers + 8};
  const Ring<kStages> k_ring{barriers + 16, barriers + 16 + 8 * kStages},
      v_ring{barriers + 16 + 16 * kStages, barriers + 16 + 24 * kStages};
  if (threadIdx.x == 0) {
    q_ring.init(4 * Shape::kGroups);
    k_ring.init(4 * Shape::kGroups);
    v_ring.init(4 * Shape::kGroups);
    publish_barriers();
  }
  __syncthreads();
  const TileSizes& s = p.sizes;
  const OwnPlace place;
  const auto blocks_before = [&](int last_query) {
    return last_query < 0 ? 0 : (s.visible_keys(last_query) + kKeys - 1) / kKeys;
  };
  std::uint32_t tiles = 0, turn = 0;
  if (place.warpgroup == Shape::kGroups) {
    leave_registers<Shape::kLoaderRegisters>();
    if (threadIdx.x % kWarpgroup != 0) return;
    for_tiles(s, [&](int at, int tile) {
      const int batch = at / s.heads, head = at % s.heads, key_head = head / s.group, first = tile * kRows;
      const int blocks = blocks_before(min(first + kRows, s.queries) - 1);
      if (blocks == 0) return;
      q_ring.wait_empty(tiles);
      arrive_expecting(q_ring.full_barrier(tiles), 2 * Shape::kQueryBytes);
      load_tile<kRows, kDim>(q_tile, p.q, q_ring.full_barrier(tiles), head, first, batch);
      load_tile<kRows, kDim>(dout_tile, p.dout, q_ring.full_barrier(tiles), head, first, batch);
      ++tiles;
      for (int j = blocks - 1; j >= 0; --j, ++turn) {
        const std::uint32_t offset = k_ring.slot(turn) * Shape::kTileBytes;
        k_ring.wait_empty(turn);
        arrive_expecting(k_ring.full_barrier(turn), Shape::kTileBytes);
        load_tile<kKeys, kDim>(k_tiles + offset, p.k, k_ring.full_barrier(turn), key_head, j * kKeys, batch);
        v_ring.wait_empty(turn);
        arrive_expecting(v_ring.full_barrier(turn), Shape::kTileBytes);
        load_tile<kKeys, kDim>(v_tiles + offset, p.v, v_ring.full_barrier(turn), key_head, j * kKeys, batch);
      }
    });
  } else {
    take_registers<Shape::kRegisters>();
    const std::uint32_t group_offset = place.warpgroup * kGroupRows * kRowBytes;
    const std::uint64_t k0 = tile_operand(k_tiles, kPanel), v0 = tile_operand(v_tiles, kPanel);
    for_tiles(s, [&](int at, int tile) {
      const int batch = at / s.heads, head = at % s.heads;
      const int tile_begin = tile * kRows, first = tile_begin + place.warpgroup * kGroupRows;
      const int blocks = blocks_before(min(tile_begin + kRows, s.queries) - 1);
      const int own = first < s.queries ? blocks_before(min(first + kGroupRows, s.queries) - 1) : 0;
      float lse_log2[2], delta[2], dq[kDim / 2] = {};
      int limit[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = first + place.row + 8 * h;
        limit[h] = s.visible_keys(row) - 1;
        const std::int64_t statistic = static_cast<std::int64_t>(at) * p.statistics + row;
        lse_log2[h] = row < p.statistics ? p.lse_log2[statistic] : kInfinity;
        delta[h] = row < p.statistics ? p.delta[statistic] : 0;
      }
      if (blocks > 0) q_ring.wait_full(tiles);
      for (int j = blocks; j > own; --j, ++turn) {  // what only later warpgroups see
        k_ring.wait_full(turn);
        k_ring.release(turn);
        v_ring.wait_full(turn);
        v_ring.release(turn);
      }
      if (own > 0) {
        float scores[kKeys / 2] = {}, dp[kKeys / 2] = {};
        std::uint32_t ds[kKeys / 16][4], q[kDim / 16][4], dout[kDim / 16][4];
        load_operand(q, q_tile + group_offset, kQueryPanel);
        load_operand(dout, dout_tile + group_offset, kQueryPanel);
        const auto begin_scores = [&](std::uint32_t count) {
          const int offset = k_ring.slot(count) * Shape::kTileBytes;
          hold(scores);
          hold(dp);
          hold(q);
          hold(dout);
          k_ring.wait_full(count);
          v_ring.wait_full(count);
          begin_products();
          product_of_rows<T>(scores, q, further(k0, offset), kPanel);
          product_of_rows<T>(dp, dout, further(v0, offset), kPanel);
          end_products();
        };
        const auto begin_dq = [&](std::uint32_t count) {
          hold(dq);
          hold(ds);
          begin_products();
          add_product<T>(dq, ds, further(k0, k_ring.slot(count) * Shape::kTileBytes));
          end_products();
        };
        // Scores become their own gradients, but for the factor `scale`.
        const auto finish_scores = [&](int j) {
          const bool is_whole = (j + 1) * kKeys <= s.visible_keys(first);
#pragma unroll
          for (int i = 0; i < kKeys / 2; ++i) {
            const int h = i / 2 % 2;
            float weight = exp2_16(fmaf(scores[i], s.scale_log2, -lse_log2[h]));
            if (!is_whole && i / 4 * 8 + i % 2 > limit[h] - j * kKeys - place.column) weight = 0;
            scores[i] = weight * (dp[i] - delta[h]);
          }
        };
        begin_scores(turn);
        wait_products<0>();
        hold(scores);
        hold(dp);
        q_ring.release(tiles);
        v_ring.release(turn);
        finish_scores(own - 1);
        as_operand<T>(scores, ds);
        for (int j = own - 2; j >= 0; --j, ++turn) {
          begin_scores(turn + 1);
          begin_dq(turn);
          wait_products<1>();
          hold(scores);
          hold(dp);
          v_ring.release(turn + 1);
          finish_scores(j);
          wait_products<0>();
          hold(dq);
          hold(ds);
          k_ring.release(turn);
          as_operand<T>(scores, ds);
        }
        begin_dq(turn);
        wait_products<0>();
        hold(dq);
        k_ring.release(turn);
        ++turn;
      } else if (blocks > 0) {
        q_ring.release(tiles);
      }
      if (blocks > 0) ++tiles;
      store_head_rows<T, kDim>(dq, s.scale, p.dq, batch, head, first, s.queries, place);
    });
  }
}

}  // namespace

void attention_dq_tiles(const Cuda& cuda, const AttentionBackwardArgs& args) {
  visit_tiled(args.q, [&](auto tag, auto dim) {
    using T = typename decltype(tag)::type;
    using Shape = DqShape<decltype(dim)::value>;
    const char* const op = AttentionBackwardArgs::kName;
    DqTiles params;
    params.q = tensor_map(args.q, Shape::kRows, op, cuda.device);
    params.k = tensor_map(args.k, Shape::kKeys, op, cuda.device);
    params.v = tensor_map(args.v, Shape::kKeys, op, cuda.device);
    params.dout = tensor_map(args.dout, Shape::kRows, op, cuda.device);
    params.sizes = tile_sizes(args, args.q.size[1], Shape::kRows, all_heads(args.q));
    params.dq = HeadRows(args.dq);
    params.statistics = static_cast<int>(statistics_rows(args.q));
    params.lse_log2 = args.workspace.as<float>();
    params.delta = params.lse_log2 + args.q.size[0] * args.q.size[2] * statistics_rows(args.q);
    launch_tiles(dq_tiles<T, decltype(dim)::value>, params, Shape::kThreads, Shape::kSharedBytes, op, cuda);
  });
}

}  // namespace castor::cuda
