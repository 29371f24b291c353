// dk and dv of attention in tiles, with keys outside: a warpgroup keeps 64 keys and walks the queries that see them, of
// all heads of its group, in order. Scores are made transposed (a row for a key), so that probabilities and gradients
// of scores are the left operands of dv's and dk's products as they lie in registers. Those of scores may be kept, as
// they lie there, for the kernel of dq.
//
// Delicate: the statistics of queries (attention_cuda_statistics.cu) travel with q and dout through the ring; those
// beyond the last query are made so that they add nothing. Threads read them with their own loads, so each releases a
// slot for itself. Scores and sums of one block of queries are begun and awaited within it: accumulators that are in
// flight from one round of the loop to the next make the compiler wait after every product.
#include "core/ops/attention_cuda_tiles.cuh"

namespace castor::cuda {
namespace {

struct DkvTiles {
  CUtensorMap q, k, v, dout;
  TileSizes sizes;
  HeadRows dk, dv;
  const float *lse_log2, *delta;  ///< [batch and head, statistics_rows]
  int statistics;
  SlopeBlocks slopes;
  std::int64_t slopes_in_head;
  uint4* kept;  ///< gradients of scores, from those of the first head of this launch on; null: they are not kept
};

constexpr int kSlopeWords = SlopeBlocks::kBytes / 16;

template <int kDim>
struct DkvShape {
  static constexpr int kGroups = 2, kQueries = static_cast<int>(kStatisticsBlock), kStages = kDim == 64 ? 4 : 3;
  static constexpr int kRows = kGroups * kGroupRows, kThreads = kWarpgroup * (kGroups + 1);
  static constexpr bool kHoldsKeys = kDim == 64;  ///< k and v as left operands in registers
  static constexpr int kLoaderRegisters = 24, kRegisters = 240;
  static constexpr int kTileBytes = kQueries * kDim * 2, kKeyBytes = kRows * kDim * 2, kStatisticBytes = kQueries * 4;
  static constexpr int kBarriers = 2 + 2 * kStages;
  static constexpr int kSharedBytes =
      1024 + 2 * kKeyBytes + 2 * kStages * (kTileBytes + kStatisticBytes) + 8 * kBarriers;
};

template <class T, int kDim>
__global__ void __launch_bounds__(DkvShape<kDim>::kThreads, 1) dkv_tiles(const __grid_constant__ DkvTiles p) {
  using Shape = DkvShape<kDim>;
  constexpr int kQueries = Shape::kQueries, kRows = Shape::kRows, kStages = Shape::kStages;
  constexpr int kPanel = kQueries * kRowBytes, kKeyPanel = kRows * kRowBytes;
  extern __shared__ unsigned char memory[];
  const std::uint32_t k_tile = (shared_address(memory) + 1023) & ~1023u, v_tile = k_tile + Shape::kKeyBytes,
                      q_tiles = v_tile + Shape::kKeyBytes, dout_tiles = q_tiles + kStages * Shape::kTileBytes,
                      lse_slots = dout_tiles + kStages * Shape::kTileBytes,
                      delta_slots = lse_slots + kStages * Shape::kStatisticBytes,
                      barriers = delta_slots + kStages * Shape::kStatisticBytes;
  const Ring<1> k_ring{barriers, barriers + 8};
  const Ring<kStages> q_ring{barriers + 16, barriers + 16 + 8 * kStages};
  if (threadIdx.x == 0) {
    k_ring.init(4 * Shape::kGroups);
    q_ring.init(kWarpgroup * Shape::kGroups);
    publish_barriers();
  }
  __syncthreads();
  const TileSizes& s = p.sizes;
  const OwnPlace place;
  const int key_heads = s.heads / s.group, query_blocks = (s.queries + kQueries - 1) / kQueries;
  // The first block of queries of which one sees the key.
  const auto first_block = [&](int key) { return min(s.first_query(key) / kQueries, query_blocks); };
  std::uint32_t tiles = 0, turn = 0;
  if (place.warpgroup == Shape::kGroups) {
    leave_registers<Shape::kLoaderRegisters>();
    if (threadIdx.x % kWarpgroup != 0) return;
    for_tiles(s, [&](int at, int tile) {
      const int batch = at / key_heads, key_head = at % key_heads, first = tile * kRows;
      k_ring.wait_empty(tiles);
      arrive_expecting(k_ring.full_barrier(tiles), 2 * Shape::kKeyBytes);
      load_tile<kRows, kDim>(k_tile, p.k, k_ring.full_barrier(tiles), key_head, first, batch);
      load_tile<kRows, kDim>(v_tile, p.v, k_ring.full_barrier(tiles), key_head, first, batch);
      ++tiles;
      for (int head = key_head * s.group; head < (key_head + 1) * s.group; ++head) {
        const std::int64_t statistics = (static_cast<std::int64_t>(batch) * s.heads + head) * p.statistics;
        for (int i = first_block(first); i < query_blocks; ++i, ++turn) {
          const int slot = q_ring.slot(turn);
          const std::uint32_t full = q_ring.full_barrier(turn);
          q_ring.wait_empty(turn);
          arrive_expecting(full, 2 * (Shape::kTileBytes + Shape::kStatisticBytes));
          load_tile<kQueries, kDim>(q_tiles + slot * Shape::kTileBytes, p.q, full, head, i * kQueries, batch);
          load_bytes(lse_slots + slot * Shape::kStatisticBytes, p.lse_log2 + statistics + i * kQueries,
                     Shape::kStatisticBytes, full);
          load_tile<kQueries, kDim>(dout_tiles + slot * Shape::kTileBytes, p.dout, full, head, i * kQueries, batch);
          load_bytes(delta_slots + slot * Shape::kStatisticBytes, p.delta + statistics + i * kQueries,
                     Shape::kStatisticBytes, full);
        }
      }
    });
  } else {
    take_registers<Shape::kRegisters>();
    const std::uint32_t group_offset = place.warpgroup * kGroupRows * kRowBytes;
    const std::uint64_t k = tile_operand(k_tile + group_offset, kKeyPanel),
                        v = tile_operand(v_tile + group_offset, kKeyPanel), q0 = tile_operand(q_tiles, kPanel),
                        dout0 = tile_operand(dout_tiles, kPanel);
    for_tiles(s, [&](int at, int tile) {
      const int batch = at / key_heads, key_head = at % key_heads;
      const int tile_begin = tile * kRows, first = tile_begin + place.warpgroup * kGroupRows;
      const int begin = first_block(tile_begin), own = first < s.keys ? first_block(first) : query_blocks;
      float dk[kDim / 2] = {}, dv[kDim / 2] = {};
      k_ring.wait_full(tiles);
      std::uint32_t held_k[Shape::kHoldsKeys ? kDim / 16 : 1][4] = {},
                                                           held_v[Shape::kHoldsKeys ? kDim / 16 : 1][4] = {};
      if constexpr (Shape::kHoldsKeys) {
        load_operand(held_k, k_tile + group_offset, kKeyPanel);
        load_operand(held_v, v_tile + group_offset, kKeyPanel);
      }
      bool has_keys = true;  // k_ring's slot is still this warpgroup's
      const auto release_keys = [&] {
        if (has_keys) k_ring.release(tiles);
        has_keys = false;
      };
      for (int head = 0; head < s.group; ++head) {
        for (int i = begin; i < own; ++i, ++turn) {  // queries that see earlier warpgroups' keys only
          q_ring.wait_full(turn);
          q_ring.release_each(turn);
        }
        if (own == query_blocks) continue;
        float scores[kQueries / 2] = {}, dp[kQueries / 2] = {};
        std::uint32_t weights[kQueries / 16][4], ds[kQueries / 16][4];
        const auto begin_product = [&](auto& c, std::uint64_t tile, const auto& held, std::uint64_t right) {
          if constexpr (Shape::kHoldsKeys) {
            product_of_rows<T>(c, held, right, kPanel);
          } else {
            product_of_rows<T, kDim>(c, tile, kKeyPanel, right, kPanel);
          }
        };
        const auto offset_of = [&](std::uint32_t count) { return q_ring.slot(count) * Shape::kTileBytes; };
        const auto begin_scores = [&](std::uint32_t count) {
          q_ring.wait_full(count);
          hold(scores);
          hold(dp);
          hold(held_k);
          hold(held_v);
          begin_products();
          begin_product(scores, k, held_k, further(q0, offset_of(count)));
          end_products();
          begin_product(dp, v, held_v, further(dout0, offset_of(count)));
          end_products();
        };
        const auto begin_dv = [&](std::uint32_t count) {
          hold(dv);
          hold(weights);
          begin_products();
          add_product<T>(dv, weights, further(dout0, offset_of(count)));
          end_products();
        };
        const auto begin_dk = [&](std::uint32_t count) {
          hold(dk);
          hold(ds);
          begin_products();
          add_product<T>(dk, ds, further(q0, offset_of(count)));
          end_products();
        };
        // What the statistics of a block's queries say for this thread's columns.
        const auto statistic = [&](std::uint32_t slots, std::uint32_t count, int j) {
          float2 pair;
          asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                       : "=f"(pair.x), "=f"(pair.y)
                       : "r"(slots + q_ring.slot(count) * Shape::kStatisticBytes + (j * 8 + place.column) * 4));
          return pair;
        };
        // Scores become probabilities; those of rows beyond the last key become 0, which dq's kernel relies on.
        const auto finish_scores = [&](int i, std::uint32_t count) {
          const bool is_whole =
              (!s.is_causal || i * kQueries + s.shift >= first + kGroupRows - 1) && first + kGroupRows <= s.keys;
          // The column, counted from this thread's first, from which on queries see the key of either row.
          int from[2];
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const int key = first + place.row + 8 * h, seen = key - (i * kQueries + s.shift + place.column);
            from[h] = key >= s.keys ? kQueries : s.is_causal ? seen : 0;
          }
#pragma unroll
          for (int j = 0; j < kQueries / 8; ++j) {
            const float2 lse = statistic(lse_slots, count, j);
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              float weight = exp2_16(fmaf(scores[4 * j + e], s.scale_log2, e % 2 == 0 ? -lse.x : -lse.y));
              if (!is_whole && 8 * j + e % 2 < from[e / 2]) weight = 0;
              scores[4 * j + e] = weight;
            }
          }
        };
        // Gradients of probabilities become those of scores, but for the factor `scale`.
        const auto finish_gradients = [&](std::uint32_t count) {
#pragma unroll
          for (int j = 0; j < kQueries / 8; ++j) {
            const float2 delta = statistic(delta_slots, count, j);
#pragma unroll
            for (int e = 0; e < 4; ++e)
              dp[4 * j + e] = scores[4 * j + e] * (dp[4 * j + e] - (e % 2 == 0 ? delta.x : delta.y));
          }
        };
        uint4* kept = nullptr;
        if (p.kept != nullptr) {
          const std::int64_t at_head = static_cast<std::int64_t>(at - s.first) * s.group + head;
          kept = p.kept + (at_head * p.slopes_in_head + p.slopes.place(first / kGroupRows, own)) * kSlopeWords +
                 threadIdx.x % kWarpgroup;
        }
        for (int i = own; i < query_blocks; ++i, ++turn) {
          begin_scores(turn);
          wait_products<1>();
          hold(scores);
          finish_scores(i, turn);
          as_operand<T>(scores, weights);
          begin_dv(turn);
          wait_products<1>();
          hold(dp);
          finish_gradients(turn);
          as_operand<T>(dp, ds);
          begin_dk(turn);
          if (kept != nullptr) {
#pragma unroll
            for (int step = 0; step < kQueries / 16; ++step)
              kept[step * kWarpgroup] = make_uint4(ds[step][0], ds[step][1], ds[step][2], ds[step][3]);
            kept += kSlopeWords;
          }
          wait_products<0>();
          hold(dk);
          hold(dv);
          hold(weights);
          hold(ds);
          if constexpr (Shape::kHoldsKeys) release_keys();
          q_ring.release_each(turn);
        }
      }
      release_keys();
      ++tiles;
      store_head_rows<T, kDim>(dk, s.scale, p.dk, batch, key_head, first, s.keys, place);
      store_head_rows<T, kDim>(dv, 1, p.dv, batch, key_head, first, s.keys, place);
    });
  }
}

}  // namespace

void attention_dkv_tiles(const Cuda& cuda, const AttentionBackwardArgs& args, HeadRange heads, void* slopes) {
  visit_tiled(args.q, [&](auto tag, auto dim) {
    using T = typename decltype(tag)::type;
    using Shape = DkvShape<decltype(dim)::value>;
    const char* const op = AttentionBackwardArgs::kName;
    DkvTiles params;
    params.q = tensor_map(args.q, Shape::kQueries, op, cuda.device);
    params.k = tensor_map(args.k, Shape::kRows, op, cuda.device);
    params.v = tensor_map(args.v, Shape::kRows, op, cuda.device);
    params.dout = tensor_map(args.dout, Shape::kQueries, op, cuda.device);
    params.sizes = tile_sizes(args, args.k.size[1], Shape::kRows, heads);
    params.dk = HeadRows(args.dk);
    params.dv = HeadRows(args.dv);
    params.statistics = static_cast<int>(statistics_rows(args.q));
    params.lse_log2 = args.workspace.as<float>();
    params.delta = params.lse_log2 + args.q.size[0] * args.q.size[2] * statistics_rows(args.q);
    params.slopes = SlopeBlocks(args.q.size[1], args.k.size[1], args.causal);
    params.slopes_in_head = params.slopes.count();
    params.kept = static_cast<uint4*>(slopes);
    launch_tiles(dkv_tiles<T, decltype(dim)::value>, params, Shape::kThreads, Shape::kSharedBytes, op, cuda);
  });
}

}  // namespace castor::cuda
