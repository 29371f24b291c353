// How large chunks should be: the smallest size, within a range, that parameters fill when they are packed in their
// order.
//
// Source: ColossalAI's search, which takes the least unused tail of next-fit packing over a range of sizes. Memory for
// a chunk is what its parameters need, so waste costs messages and not bytes: a chunk that is nearly empty is sent like
// a full one. What is gathered is held whole, however; so the smallest size that is full enough is taken here, and a
// fuller, larger one only where none is. In [32, 64] Mi elements no run of whole layers of GPT-2 350M fills a chunk
// (the best wastes 1.5 %); up to 128 Mi one does.
#pragma once

#include <cstdint>
#include <span>

namespace castor::dist {

/// A chunk's size, and what it wastes.
struct ChunkSize {
  std::int64_t elements = 0;  ///< of a chunk
  std::int64_t chunks = 0;    ///< that are needed
  double waste = 0;           ///< unused share of all chunks, those of single larger parameters left out
};

/// A size whose waste is no more than this is full enough: smaller ones are preferred to fuller ones.
inline constexpr double kFullEnough = 0.005;

/// Of the sizes [smallest, smallest + range] in steps of `step`: the smallest that is full enough, or the fullest where
/// none is.
///   sizes  elements of the parameters, in the order in which they are packed
ChunkSize search_chunk_size(std::span<const std::int64_t> sizes, std::int64_t smallest, std::int64_t range,
                            std::int64_t step);

}  // namespace castor::dist
