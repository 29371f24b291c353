// Where parameters lie when several of them share one flat array: the buckets of gradients, the shards of ZeRO and the
// chunks of Gemini are all laid out here, and cut into one piece a rank.
//
// Delicate: all ranks must compute the same layout, so it is a function of sizes, dtypes and the world size alone. A
// piece begins on a block of kBlockElements of the *logical* parameter it cuts (or at a parameter's start), because
// sums over a parameter's elements are taken in those blocks; pieces may therefore differ in size, and be empty.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/base/dtype.h"

namespace castor::dist {

/// What is laid out.
struct FlatItem {
  std::int64_t count = 0;  ///< elements
  DType dtype = DType::f32;
};

/// Elements between whose multiples an item begins: 256 bytes of 16-bit elements.
inline constexpr std::int64_t kItemAlignment = 128;

/// One item in an array.
struct FlatSlot {
  std::size_t item = 0;     ///< its number
  std::int64_t offset = 0;  ///< of its first element in the array; a multiple of kItemAlignment
  std::int64_t count = 0;
};

/// A stretch of one item in a rank's piece.
struct FlatStretch {
  std::size_t slot = 0;          ///< number in the array's slots
  std::int64_t item_offset = 0;  ///< its first element, counted from the item's; a multiple of kBlockElements
  std::int64_t offset = 0;       ///< the same, counted from the array's
  std::int64_t count = 0;
};

/// One flat array.
struct FlatArray {
  DType dtype = DType::f32;
  std::vector<FlatSlot> slots;     ///< in the order of the items
  std::int64_t elements = 0;       ///< with the gaps between slots
  std::vector<std::int64_t> cuts;  ///< piece r is [cuts[r], cuts[r + 1])

  std::int64_t piece_elements(int rank) const {
    return cuts[static_cast<std::size_t>(rank) + 1] - cuts[static_cast<std::size_t>(rank)];
  }
  /// What lies in piece `rank`, in order. An item without elements is rank 0's.
  std::vector<FlatStretch> stretches(int rank) const;
};

/// Packs items in their order into arrays of one dtype each. A new array begins where the next item would make the
/// current one of its dtype larger than `capacity` elements; an item larger than that has one of its own.
std::vector<FlatArray> lay_out(std::span<const FlatItem> items, std::int64_t capacity, int world_size);

}  // namespace castor::dist
