// Arrays of several parameters and their cuts: everything is covered once, and cuts fall where sums may be cut.
#include "dist/flat_layout.h"

#include <algorithm>
#include <cstdlib>
#include <random>

#include <doctest/doctest.h>

#include "autograd/optim/optimizer.h"

namespace castor::dist {
namespace {

TEST_CASE("random sizes: every element belongs to one rank, cuts fall on blocks, arrays keep to their capacity") {
  std::mt19937 random(1);
  for (int round = 0; round < 300; ++round) {
    std::vector<FlatItem> items(1 + random() % 12);
    for (FlatItem& item : items) {
      item.count = static_cast<std::int64_t>(random() % 3 == 0 ? random() % 9000 : random() % 600);
      item.dtype = random() % 4 == 0 ? DType::f32 : DType::bf16;
    }
    const std::int64_t capacity = 1 + static_cast<std::int64_t>(random() % 12000);
    const int world_size = 1 + static_cast<int>(random() % 9);
    const std::vector<FlatArray> arrays = lay_out(items, capacity, world_size);
    std::vector<std::vector<int>> owners(items.size());
    for (std::size_t i = 0; i < items.size(); ++i) owners[i].assign(static_cast<std::size_t>(items[i].count), 0);
    std::vector<int> placed(items.size());
    for (const FlatArray& array : arrays) {
      REQUIRE(array.cuts.size() == static_cast<std::size_t>(world_size) + 1);
      CHECK(array.cuts.front() == 0);
      CHECK(array.cuts.back() == array.elements);
      std::int64_t filled = 0;
      for (const FlatSlot& slot : array.slots) {
        CHECK(slot.offset % kItemAlignment == 0);
        CHECK(slot.offset >= filled);
        CHECK(slot.count == items[slot.item].count);
        CHECK(array.dtype == items[slot.item].dtype);
        filled = slot.offset + slot.count;
        ++placed[slot.item];
      }
      CHECK((array.slots.size() == 1 || filled <= capacity));
      for (int rank = 0; rank < world_size; ++rank) {
        CHECK(array.piece_elements(rank) >= 0);
        for (const FlatStretch& stretch : array.stretches(rank)) {
          const FlatSlot& slot = array.slots[stretch.slot];
          CHECK(stretch.item_offset % autograd::kBlockElements == 0);
          CHECK(stretch.offset == slot.offset + stretch.item_offset);
          if (stretch.count > 0)
            CHECK(stretch.offset + stretch.count <= array.cuts[static_cast<std::size_t>(rank) + 1]);
          for (std::int64_t i = 0; i < stretch.count; ++i)
            ++owners[slot.item][static_cast<std::size_t>(stretch.item_offset + i)];
        }
      }
    }
    for (std::size_t i = 0; i < items.size(); ++i) {
      CHECK(placed[i] == 1);
      CHECK(std::count(owners[i].begin(), owners[i].end(), 1) == items[i].count);
    }
  }
}

TEST_CASE("pieces of a large parameter differ by less than a block") {
  const FlatItem item{1 << 20, DType::f32};
  for (const int world_size : {2, 3, 7, 64}) {
    const FlatArray array = lay_out({&item, 1}, 1, world_size).at(0);
    const std::int64_t ideal = item.count / world_size;
    for (int rank = 0; rank < world_size; ++rank)
      CHECK(std::abs(array.piece_elements(rank) - ideal) <= autograd::kBlockElements);
  }
}

}  // namespace
}  // namespace castor::dist
