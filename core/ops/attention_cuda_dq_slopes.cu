// dq of attention from gradients of scores that the kernel of dk and dv has kept: one product, with queries outside, so
// each query's dq is summed by one warpgroup, in the order of keys.
//
// Bound by memory: 8192 bytes of gradients of scores for each 64 keys and 64 queries, which the copy engine brings as
// they lie; a warpgroup makes its left operand of them by transposing 8 by 8 words.
//
// Delicate: threads read what copies brought with their own loads, so each releases a slot for itself, once the product
// of what it has read is done.
#include "core/ops/attention_cuda_tiles.cuh"

namespace castor::cuda {
namespace {

struct DqSlopes {
  CUtensorMap k;
  TileSizes sizes;
  HeadRows dq;
  SlopeBlocks slopes;
  std::int64_t slopes_in_head;
  const unsigned char* kept;  ///< of the first head of this launch
};

template <int kDim>
struct DqSlopesShape {
  static constexpr int kGroups = 4, kKeys = SlopeBlocks::kRows, kStages = 4;
  static constexpr int kRows = kGroups * kGroupRows, kThreads = kWarpgroup * (kGroups + 1);
  static constexpr int kLoaderRegisters = 24, kRegisters = 112;
  static constexpr int kTileBytes = kKeys * kDim * 2, kSlopesBytes = kGroups * SlopeBlocks::kBytes;
  static constexpr int kBarriers = 2 * kStages;
  static constexpr int kSharedBytes = 1024 + kStages * (kTileBytes + kSlopesBytes) + 8 * kBarriers;
};

/// 8 by 8 numbers of 16 bits, two of a row in each lane, transposed.
__device__ inline std::uint32_t transposed(std::uint32_t word) {
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %0;" : "+r"(word));
  return word;
}

template <class T, int kDim>
__global__ void __launch_bounds__(DqSlopesShape<kDim>::kThreads, 1) dq_slopes(const __grid_constant__ DqSlopes p) {
  using Shape = DqSlopesShape<kDim>;
  constexpr int kKeys = Shape::kKeys, kStages = Shape::kStages, kPanel = kKeys * kRowBytes;
  extern __shared__ unsigned char memory[];
  const std::uint32_t k_tiles = (shared_address(memory) + 1023) & ~1023u,
                      slope_tiles = k_tiles + kStages * Shape::kTileBytes,
                      barriers = slope_tiles + kStages * Shape::kSlopesBytes;
  const Ring<kStages> ring{barriers, barriers + 8 * kStages};
  if (threadIdx.x == 0) {
    ring.init(kWarpgroup * Shape::kGroups);
    publish_barriers();
  }
  __syncthreads();
  const TileSizes& s = p.sizes;
  const OwnPlace place;
  // Key blocks that a warpgroup's queries see.
  const auto seen = [&](int tile, int group) {
    const int block = tile * Shape::kGroups + group;
    return block < p.slopes.query_blocks ? p.slopes.seen_key_blocks(block) : 0;
  };
  const auto most_seen = [&](int tile) {
    return p.slopes.seen_key_blocks(min((tile + 1) * Shape::kGroups, p.slopes.query_blocks) - 1);
  };
  std::uint32_t turn = 0;
  if (place.warpgroup == Shape::kGroups) {
    leave_registers<Shape::kLoaderRegisters>();
    if (threadIdx.x % kWarpgroup != 0) return;
    for_tiles(s, [&](int at, int tile) {
      const int batch = at / s.heads, key_head = at % s.heads / s.group, blocks = most_seen(tile);
      const unsigned char* const kept = p.kept + (at - s.first) * p.slopes_in_head * SlopeBlocks::kBytes;
      for (int j = 0; j < blocks; ++j, ++turn) {
        const std::uint32_t full = ring.full_barrier(turn);
        int groups = 0;
        for (int group = 0; group < Shape::kGroups; ++group) groups += j < seen(tile, group) ? 1 : 0;
        ring.wait_empty(turn);
        arrive_expecting(full, Shape::kTileBytes + groups * SlopeBlocks::kBytes);
        load_tile<kKeys, kDim>(k_tiles + ring.slot(turn) * Shape::kTileBytes, p.k, full, key_head, j * kKeys, batch);
        for (int group = 0; group < Shape::kGroups; ++group) {
          if (j >= seen(tile, group)) continue;
          load_bytes(slope_tiles + ring.slot(turn) * Shape::kSlopesBytes + group * SlopeBlocks::kBytes,
                     kept + p.slopes.place(j, tile * Shape::kGroups + group) * SlopeBlocks::kBytes, SlopeBlocks::kBytes,
                     full);
        }
      }
    });
  } else {
    take_registers<Shape::kRegisters>();
    const std::uint64_t k0 = tile_operand(k_tiles, kPanel);
    // Of each 16 keys a warp holds 16 by 16 numbers of its queries.
    const std::uint32_t own_words = slope_tiles + place.warpgroup * SlopeBlocks::kBytes +
                                    threadIdx.x % kWarpgroup / 32 * (SlopeBlocks::kBytes / 4) + threadIdx.x % 32 * 16;
    for_tiles(s, [&](int at, int tile) {
      const int batch = at / s.heads, head = at % s.heads,
                first = (tile * Shape::kGroups + place.warpgroup) * kGroupRows;
      const int blocks = most_seen(tile), own = seen(tile, place.warpgroup);
      float dq[kDim / 2] = {};
      for (int j = 0; j < own; ++j, ++turn) {
        std::uint32_t ds[kKeys / 16][4];
        ring.wait_full(turn);
#pragma unroll
        for (int step = 0; step < kKeys / 16; ++step) {
          const std::uint32_t from = own_words + ring.slot(turn) * Shape::kSlopesBytes + step * 512;
          asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                       : "=r"(ds[step][0]), "=r"(ds[step][2]), "=r"(ds[step][1]), "=r"(ds[step][3])
                       : "r"(from)
                       : "memory");
#pragma unroll
          for (int i = 0; i < 4; ++i) ds[step][i] = transposed(ds[step][i]);
        }
        hold(dq);
        hold(ds);
        begin_products();
        add_product<T>(dq, ds, further(k0, ring.slot(turn) * Shape::kTileBytes));
        end_products();
        wait_products<0>();
        hold(dq);
        hold(ds);
        ring.release_each(turn);
      }
      for (int j = own; j < blocks; ++j, ++turn) {  // what only later warpgroups see
        ring.wait_full(turn);
        ring.release_each(turn);
      }
      store_head_rows<T, kDim>(dq, s.scale, p.dq, batch, head, first, s.queries, place);
    });
  }
}

}  // namespace

void attention_dq_slopes(const Cuda& cuda, const AttentionBackwardArgs& args, HeadRange heads, const void* slopes) {
  visit_tiled(args.q, [&](auto tag, auto dim) {
    using T = typename decltype(tag)::type;
    using Shape = DqSlopesShape<decltype(dim)::value>;
    const char* const op = AttentionBackwardArgs::kName;
    const std::int64_t group = args.q.size[2] / args.k.size[2];
    DqSlopes params;
    params.k = tensor_map(args.k, Shape::kKeys, op, cuda.device);
    params.sizes = tile_sizes(args, args.q.size[1], Shape::kRows, {heads.first * group, heads.count * group});
    params.dq = HeadRows(args.dq);
    params.slopes = SlopeBlocks(args.q.size[1], args.k.size[1], args.causal);
    params.slopes_in_head = params.slopes.count();
    params.kept = static_cast<const unsigned char*>(slopes);
    launch_tiles(dq_slopes<T, decltype(dim)::value>, params, Shape::kThreads, Shape::kSharedBytes, op, cuda);
  });
}

}  // namespace castor::cuda
