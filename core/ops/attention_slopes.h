// Where gradients of scores lie that attention's backward keeps on a GPU, and of how many heads they are kept at a
// time. Numbers alone, so that any machine can check them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/base/host_device.h"

namespace castor {

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
  /// Under a causal cut query i sees keys 0 .. i + keys - queries.
  SlopeBlocks(std::int64_t queries, std::int64_t keys, bool causal)
      : key_blocks(blocks_of(keys)), query_blocks(blocks_of(queries)), is_causal(causal) {
    const std::int64_t shift = keys - queries;
    lead = static_cast<int>(shift > 0 ? (shift + kRows - 1) / kRows : shift / kRows);
  }

  CASTOR_HOST_DEVICE int first_query_block(int key_block) const {
    return is_causal && key_block > lead ? key_block - lead : 0;
  }
  /// As many key blocks, from the first on, does a block of queries see.
  CASTOR_HOST_DEVICE int seen_key_blocks(int query_block) const {
    const int seen = is_causal ? query_block + lead + 1 : key_blocks;
    return seen < 0 ? 0 : seen < key_blocks ? seen : key_blocks;
  }
  /// Where a block lies among those of its head; it must be one that is there.
  CASTOR_HOST_DEVICE std::int64_t place(int key_block, int query_block) const {
    const std::int64_t b = key_block, m = b > lead ? b - lead : 0;
    const std::int64_t left_out = !is_causal ? 0 : lead >= 0 ? m * (m - 1) / 2 : b * (b - 1) / 2 - lead * b;
    return b * query_blocks - left_out + query_block - first_query_block(key_block);
  }
  /// Of a head.
  std::int64_t count() const { return place(key_blocks, first_query_block(key_blocks)); }

 private:
  static int blocks_of(std::int64_t rows) { return static_cast<int>((rows + kRows - 1) / kRows); }
};

inline constexpr std::int64_t kMostSlopeBytes = std::int64_t{512} << 20;

/// Of how many of `heads` heads of keys, each with `group` heads of queries, kMostSlopeBytes hold the blocks while the
/// GPU is kept busy. 0: of too few.
inline std::int64_t heads_at_a_time(const SlopeBlocks& blocks, std::int64_t heads, std::int64_t group) {
  constexpr std::int64_t kBlocksOfTile = 2;  // of keys, in the kernel of dk and dv
  constexpr std::int64_t kProcessors = 132;  // that take an item each at a time; other numbers lose speed only
  const std::int64_t most = kMostSlopeBytes / std::max<std::int64_t>(blocks.count() * group * SlopeBlocks::kBytes, 1);
  if (most >= heads) return heads;
  const std::int64_t tiles = (blocks.key_blocks + kBlocksOfTile - 1) / kBlocksOfTile,
                     items = blocks.is_causal ? (tiles + 1) / 2 : tiles;
  // dq's kernel has half as many items of twice the rows: where each processor takes an even number of those of dk and
  // dv, none waits for others in either.
  constexpr std::int64_t kOfPair = 2 * kProcessors;
  if (const std::int64_t pairs = most * items / kOfPair; pairs > 0) {
    const std::int64_t turns = (heads * items - 1) / (pairs * kOfPair) + 1;
    return ((heads * items - 1) / (turns * kOfPair) + 1) * kOfPair / items;
  }
  return 10 * most * items >= 9 * kProcessors ? std::min(most, std::max<std::int64_t>(kProcessors / items, 1)) : 0;
}

}  // namespace castor
