// Packing and cutting; see flat_layout.h.
#include "dist/flat_layout.h"

#include <algorithm>
#include <map>

#include "autograd/optim/optimizer.h"

namespace castor::dist {
namespace {

using autograd::kBlockElements;

std::int64_t round_up(std::int64_t x, std::int64_t to) { return (x + to - 1) / to * to; }

// The nearest allowed cut at or before `ideal`.
std::int64_t cut_before(const FlatArray& array, std::int64_t ideal) {
  std::int64_t cut = 0;
  for (const FlatSlot& slot : array.slots) {
    if (slot.offset > ideal) break;
    cut = slot.offset + std::min(ideal - slot.offset, slot.count) / kBlockElements * kBlockElements;
    // Past a slot's last block the next slot's start is the cut.
    if (ideal >= slot.offset + slot.count) cut = std::min(round_up(slot.offset + slot.count, kItemAlignment), ideal);
  }
  return cut;
}

void cut_up(FlatArray& array, int world_size) {
  array.cuts = {0};
  for (int rank = 1; rank < world_size; ++rank) {
    const std::int64_t ideal = array.elements / world_size * rank + array.elements % world_size * rank / world_size;
    array.cuts.push_back(std::max(array.cuts.back(), cut_before(array, ideal)));
  }
  array.cuts.push_back(array.elements);
}

}  // namespace

std::vector<FlatStretch> FlatArray::stretches(int rank) const {
  const std::int64_t begin = cuts[static_cast<std::size_t>(rank)], end = cuts[static_cast<std::size_t>(rank) + 1];
  std::vector<FlatStretch> found;
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const FlatSlot& slot = slots[i];
    const std::int64_t first = std::max(begin, slot.offset), last = std::min(end, slot.offset + slot.count);
    if (first < last) {
      found.push_back({i, first - slot.offset, first, last - first});
    } else if (slot.count == 0 && rank == 0) {
      found.push_back({i, 0, slot.offset, 0});
    }
  }
  return found;
}

std::vector<FlatArray> lay_out(std::span<const FlatItem> items, std::int64_t capacity, int world_size) {
  std::vector<FlatArray> arrays;
  std::map<DType, std::size_t> open;
  for (std::size_t i = 0; i < items.size(); ++i) {
    const FlatItem& item = items[i];
    const auto current = open.find(item.dtype);
    const bool fits = current != open.end() && (arrays[current->second].elements == 0 ||
                                                arrays[current->second].elements + item.count <= capacity);
    if (!fits) {
      open[item.dtype] = arrays.size();
      arrays.emplace_back().dtype = item.dtype;
    }
    FlatArray& array = arrays[open.at(item.dtype)];
    array.slots.push_back({i, array.elements, item.count});
    array.elements = round_up(array.elements + item.count, kItemAlignment);
  }
  for (FlatArray& array : arrays) cut_up(array, world_size);
  return arrays;
}

}  // namespace castor::dist
