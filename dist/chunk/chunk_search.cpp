// Packing by every size of the range that packs otherwise than the next larger one.
#include "dist/chunk/chunk_search.h"

#include <algorithm>
#include <numeric>

namespace castor::dist {
namespace {

struct Packing {
  ChunkSize size;
  std::int64_t fullest = 0;  // elements of the fullest chunk, those of single larger parameters left out
};

Packing pack(std::span<const std::int64_t> sizes, std::int64_t capacity) {
  ChunkSize result{capacity, 0, 0};
  std::int64_t fullest = 0;
  std::int64_t filled = 0, used = 0, shared = 0;  // shared: chunks of more than one larger parameter
  for (const std::int64_t size : sizes) {
    if (size > capacity) {
      ++result.chunks;
      continue;
    }
    if (shared == 0 || filled + size > capacity) {
      ++shared;
      filled = 0;
    }
    filled += size;
    used += size;
    fullest = std::max(fullest, filled);
  }
  result.chunks += shared;
  if (shared > 0)
    result.waste = 1 - static_cast<double>(used) / (static_cast<double>(shared) * static_cast<double>(capacity));
  return {result, fullest};
}

}  // namespace

ChunkSize search_chunk_size(std::span<const std::int64_t> sizes, std::int64_t smallest, std::int64_t range,
                            std::int64_t step) {
  const std::int64_t all = std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0});
  if (all <= smallest) return pack(sizes, std::max<std::int64_t>(all, 1)).size;  // one chunk holds everything
  ChunkSize best;
  for (std::int64_t capacity = smallest + range / step * step;; capacity -= step) {
    // Every capacity down to the fullest chunk gives the same packing: the smallest of them wastes least.
    const std::int64_t fullest = std::max(pack(sizes, capacity).fullest, smallest);
    capacity = smallest + (fullest - smallest + step - 1) / step * step;
    const ChunkSize found = pack(sizes, capacity).size;
    if (best.elements == 0 || found.waste <= std::max(best.waste, kFullEnough)) best = found;
    if (capacity == smallest) return best;
  }
}

}  // namespace castor::dist
