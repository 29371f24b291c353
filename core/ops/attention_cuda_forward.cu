// Forward attention in tiles. A warpgroup keeps 64 queries and walks the keys from the last visible block to the first:
// while the tensor cores add one block's values and make the next one's scores, the threads turn scores into
// probabilities, relative to the running maximum. Sources: Dao 2023, arXiv:2307.08691 (blocks, queries outside); Shah
// et al. 2024, arXiv:2407.08608 (products and softmax at the same time).
//
// Floor, H100, D = 128: 4 D operations a score at 800 TFLOP/s against one exp2 at 16 a clock and multiprocessor: 0.64
// against 0.27 ps; D = 64: 0.32 against 0.27 ps, so there both pipes must run side by side.
#include "core/ops/attention_cuda_tiles.cuh"

namespace castor::cuda {
namespace {

struct ForwardTiles {
  CUtensorMap q, k, v;
  TileSizes sizes;
  HeadRows out;
  float* lse;
};

/// What a kernel looks like: warpgroups that compute, keys in a block, registers of a thread.
template <int kDim, int kComputing>
struct ForwardShape {
  static constexpr int kGroups = kComputing, kKeys = 128, kStages = 2;
  /// q as a left operand in registers, where there is room for it.
  static constexpr bool kHoldsQueries = kGroups == 2;
  static constexpr int kRows = kGroups * kGroupRows, kThreads = kWarpgroup * (kGroups + 1);
  static constexpr int kLoaderRegisters = kGroups == 2 ? 24 : 32, kRegisters = kGroups == 2 ? 240 : 160;
  static constexpr int kTileBytes = kKeys * kDim * 2, kQueryBytes = kRows * kDim * 2;
  static constexpr int kBarriers = 2 + 4 * kStages;
  static constexpr int kSharedBytes = 1024 + kQueryBytes + 2 * kStages * kTileBytes + 8 * kBarriers;
};

template <class T, int kDim, int kComputing>
__global__ void __launch_bounds__(ForwardShape<kDim, kComputing>::kThreads, 1)
    forward_tiles(const __grid_constant__ ForwardTiles p) {
  using Shape = ForwardShape<kDim, kComputing>;
  constexpr int kKeys = Shape::kKeys, kRows = Shape::kRows, kStages = Shape::kStages;
  constexpr int kPanel = kKeys * kRowBytes;
  extern __shared__ unsigned char memory[];
  const std::uint32_t q_tile = (shared_address(memory) + 1023) & ~1023u, k_tiles = q_tile + Shape::kQueryBytes,
                      v_tiles = k_tiles + kStages * Shape::kTileBytes, barriers = v_tiles + kStages * Shape::kTileBytes;
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
  std::uint32_t tiles = 0, turn = 0;  // loads of queries and of keys before this one
  if (place.warpgroup == Shape::kGroups) {
    leave_registers<Shape::kLoaderRegisters>();
    if (threadIdx.x % kWarpgroup != 0) return;
    for_tiles(s, [&](int at, int tile) {
      const int batch = at / s.heads, head = at % s.heads, key_head = head / s.group, first = tile * kRows;
      const int blocks = blocks_before(min(first + kRows, s.queries) - 1);
      if (blocks == 0) return;
      q_ring.wait_empty(tiles);
      arrive_expecting(q_ring.full_barrier(tiles), Shape::kQueryBytes);
      load_tile<kRows, kDim>(q_tile, p.q, q_ring.full_barrier(tiles), head, first, batch);
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
    const std::uint64_t q = tile_operand(q_tile + place.warpgroup * kGroupRows * kRowBytes, kRows * kRowBytes),
                        k0 = tile_operand(k_tiles, kPanel), v0 = tile_operand(v_tiles, kPanel);
    // While one warpgroup's products are made the others turn scores into probabilities: each has one turn a block of
    // keys but the first, in order.
    const auto take_turn = [&] { wait_named(1 + place.warpgroup, 2 * kWarpgroup); };
    const auto pass_turn = [&] { arrive_named(1 + (place.warpgroup + 1) % Shape::kGroups, 2 * kWarpgroup); };
    if (place.warpgroup == Shape::kGroups - 1) pass_turn();
    for_tiles(s, [&](int at, int tile) {
      const int batch = at / s.heads, head = at % s.heads;
      const int tile_begin = tile * kRows, first = tile_begin + place.warpgroup * kGroupRows;
      const int blocks = blocks_before(min(tile_begin + kRows, s.queries) - 1);
      const int own = first < s.queries ? blocks_before(min(first + kGroupRows, s.queries) - 1) : 0;
      const int row[2] = {first + place.row, first + place.row + 8};
      const int limit[2] = {s.visible_keys(row[0]) - 1, s.visible_keys(row[1]) - 1};
      float out[kDim / 2] = {}, shrink[2];
      RunningSoftmax softmax;
      if (blocks > 0) q_ring.wait_full(tiles);
      for (int j = blocks; j > own; --j, ++turn) {  // what only later warpgroups see
        k_ring.wait_full(turn);
        k_ring.release(turn);
        v_ring.wait_full(turn);
        v_ring.release(turn);
        if (j > 1) {
          take_turn();
          pass_turn();
        }
      }
      if (own > 0) {
        float scores[kKeys / 2] = {};
        std::uint32_t weights[kKeys / 16][4];
        std::uint32_t held_q[Shape::kHoldsQueries ? kDim / 16 : 1][4] = {};
        if constexpr (Shape::kHoldsQueries)
          load_operand(held_q, q_tile + place.warpgroup * kGroupRows * kRowBytes, kRows * kRowBytes);
        const auto begin_scores = [&](std::uint32_t count) {
          k_ring.wait_full(count);
          const std::uint64_t k = further(k0, k_ring.slot(count) * Shape::kTileBytes);
          hold(scores);
          hold(held_q);
          begin_products();
          if constexpr (Shape::kHoldsQueries) {
            product_of_rows<T>(scores, held_q, k, kPanel);
          } else {
            product_of_rows<T, kDim>(scores, q, kRows * kRowBytes, k, kPanel);
          }
          end_products();
        };
        const auto begin_output = [&](std::uint32_t count) {
          v_ring.wait_full(count);
          hold(out);
          hold(weights);
          begin_products();
          add_product<T>(out, weights, further(v0, v_ring.slot(count) * Shape::kTileBytes));
          end_products();
        };
        const auto finish_scores = [&](int j) {
          if ((j + 1) * kKeys - 1 > s.visible_keys(first) - 1) mask_keys(scores, j * kKeys, place.column, limit);
          softmax.add(scores, s.scale_log2, shrink);
        };
        begin_scores(turn);
        wait_products<0>();
        hold(scores);
        if constexpr (Shape::kHoldsQueries) q_ring.release(tiles);
        k_ring.release(turn);
        finish_scores(own - 1);
        as_operand<T>(scores, weights);
        for (int j = own - 2; j >= 0; --j, ++turn) {
          take_turn();
          begin_scores(turn + 1);
          begin_output(turn);
          pass_turn();
          wait_products<1>();
          hold(scores);
          k_ring.release(turn + 1);
          finish_scores(j);
          wait_products<0>();
          hold(out);
          hold(weights);
          v_ring.release(turn);
#pragma unroll
          for (int i = 0; i < kDim / 2; ++i) out[i] *= shrink[i / 2 % 2];
          as_operand<T>(scores, weights);
        }
        if constexpr (!Shape::kHoldsQueries) q_ring.release(tiles);
        begin_output(turn);
        wait_products<0>();
        hold(out);
        v_ring.release(turn);
        ++turn;
      } else if (blocks > 0) {
        q_ring.release(tiles);
      }
      if (blocks > 0) ++tiles;
      float factor[2], lse[2];
      softmax.finish(s.scale, factor, lse);
      T* rows[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        rows[h] = row[h] < s.queries ? p.out.at<T>(batch, row[h], head) : nullptr;
        if (rows[h] != nullptr && place.column == 0) p.lse[static_cast<std::int64_t>(at) * s.queries + row[h]] = lse[h];
      }
      store_accumulators<T, kDim>(out, factor, rows);
    });
  }
}

template <class T, int kDim, int kComputing>
void launch_forward(const Cuda& cuda, const AttentionArgs& args) {
  using Shape = ForwardShape<kDim, kComputing>;
  const char* const op = AttentionArgs::kName;
  ForwardTiles params;
  params.q = tensor_map(args.q, Shape::kRows, op, cuda.device);
  params.k = tensor_map(args.k, Shape::kKeys, op, cuda.device);
  params.v = tensor_map(args.v, Shape::kKeys, op, cuda.device);
  params.sizes = tile_sizes(args, args.q.size[1], Shape::kRows, all_heads(args.q));
  params.out = HeadRows(args.out);
  params.lse = args.lse.as<float>();
  launch_tiles(forward_tiles<T, kDim, kComputing>, params, Shape::kThreads, Shape::kSharedBytes, op, cuda);
}

}  // namespace

void attention_tiles(const Cuda& cuda, const AttentionArgs& args) {
  constexpr std::int64_t kLong = 2048;  // queries from which tiles of 192 win over those of 128: less is cut off
  visit_tiled(args.q, [&](auto tag, auto dim) {
    using T = typename decltype(tag)::type;
    if constexpr (dim == 64) {
      if (args.q.size[1] >= kLong) return launch_forward<T, 64, 3>(cuda, args);
    }
    launch_forward<T, decltype(dim)::value, 2>(cuda, args);
  });
}

}  // namespace castor::cuda
