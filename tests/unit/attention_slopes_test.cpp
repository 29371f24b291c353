// The places of attention's kept gradients of scores, against a look at every query and key, and how many heads share
// the memory for them.
#include "core/ops/attention_slopes.h"

#include <vector>

#include <doctest/doctest.h>

using namespace castor;

namespace {

constexpr int kRows = SlopeBlocks::kRows;

struct Sizes {
  std::int64_t queries, keys;
};
constexpr Sizes kSizes[] = {{1, 1},     {64, 64},  {65, 64},   {64, 65},   {128, 128}, {200, 200},  {130, 300},
                            {300, 130}, {77, 500}, {500, 77},  {640, 1},   {1, 640},   {2100, 150}, {150, 2100},
                            {63, 191},  {191, 63}, {128, 192}, {192, 128}, {129, 65},  {1024, 1024}};

/// Whether one of the block's queries sees one of its keys.
bool is_seen(const Sizes& sizes, bool is_causal, int key_block, int query_block) {
  const std::int64_t key = std::int64_t{key_block} * kRows,
                     last_query = std::min<std::int64_t>((query_block + 1) * kRows, sizes.queries) - 1;
  return !is_causal || key <= last_query + sizes.keys - sizes.queries;
}

}  // namespace

TEST_CASE("every block of which a query sees a key has a place of its own, in the order of keys and then of queries") {
  for (const Sizes& sizes : kSizes) {
    for (const bool is_causal : {false, true}) {
      CAPTURE(sizes.queries);
      CAPTURE(sizes.keys);
      CAPTURE(is_causal);
      const SlopeBlocks blocks(sizes.queries, sizes.keys, is_causal);
      REQUIRE(blocks.key_blocks == (sizes.keys + kRows - 1) / kRows);
      REQUIRE(blocks.query_blocks == (sizes.queries + kRows - 1) / kRows);
      // A key block's queries begin at one that may see none of its keys, by less than a block.
      std::int64_t place = 0;
      for (int key_block = 0; key_block < blocks.key_blocks; ++key_block) {
        const int first = blocks.first_query_block(key_block);
        REQUIRE(first >= 0);
        for (int query_block = 0; query_block < blocks.query_blocks; ++query_block) {
          if (is_seen(sizes, is_causal, key_block, query_block)) CHECK(query_block >= first);
          CHECK((key_block < blocks.seen_key_blocks(query_block)) == (query_block >= first));
          if (query_block >= first) CHECK(blocks.place(key_block, query_block) == place++);
        }
      }
      CHECK(blocks.count() == place);
    }
  }
}

TEST_CASE("as many heads share the memory for gradients of scores as it holds, in whole turns of the GPU") {
  const auto heads = [](std::int64_t length, bool is_causal, std::int64_t heads, std::int64_t group = 1) {
    return heads_at_a_time(SlopeBlocks(length, length, is_causal), heads, group);
  };
  CHECK(heads(1024, true, 384) == 384);   // all at once
  CHECK(heads(4096, true, 128) == 16);    // 256 items for 264 places
  CHECK(heads(2048, true, 256) == 99);    // 792 of 3 * 264
  CHECK(heads(8192, true, 64) == 4);      // half of the places: 128 items
  CHECK(heads(16384, true, 16) == 0);     // one head would fill half of the GPU
  CHECK(heads(4096, false, 128) == 8);    // without a cut twice the memory for a head
  CHECK(heads(2048, true, 64, 4) == 16);  // four heads of queries each
  CHECK(heads(4096, true, 32, 4) == 0);   // seven would fit: 112 items, of 132 places
  CHECK(heads(262144, true, 1000) == 0);  // larger than all of it
  for (const std::int64_t length : {64, 512, 1000, 2048, 3000, 4096, 9000, 33000}) {
    for (const bool is_causal : {false, true}) {
      for (const std::int64_t many : {1, 7, 100, 512, 5000}) {
        const std::int64_t kept = heads(length, is_causal, many);
        CHECK(kept >= 0);
        CHECK(kept <= many);
        CHECK(kept * SlopeBlocks(length, length, is_causal).count() * SlopeBlocks::kBytes <= kMostSlopeBytes);
      }
    }
  }
}
