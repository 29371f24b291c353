// Packing by every size of the range.
#include "dist/chunk/chunk_search.h"

#include <algorithm>
#include <numeric>

namespace castor::dist {
namespace {

ChunkSize pack(std::span<const std::int64_t> sizes, std::int64_t capacity) {
  ChunkSize result{capacity, 0, 0};
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
  }
  result.chunks += shared;
  if (shared > 0)
    result.waste = 1 - static_cast<double>(used) / (static_cast<double>(shared) * static_cast<double>(capacity));
  return result;
}

}  // namespace

ChunkSize search_chunk_size(std::span<const std::int64_t> sizes, std::int64_t smallest, std::int64_t range,
                            std::int64_t step) {
  const std::int64_t all = std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0});
  if (all <= smallest) return pack(sizes, std::max<std::int64_t>(all, 1));  // one chunk holds everything
  ChunkSize best = pack(sizes, smallest);
  for (std::int64_t capacity = smallest + step; capacity <= smallest + range; capacity += step) {
    const ChunkSize found = pack(sizes, capacity);
    if (found.waste < best.waste) best = found;
  }
  return best;
}

}  // namespace castor::dist
