// Best fit over two pools of segments: small blocks (up to 1 MiB) share 2 MiB segments, larger ones share 32 MiB
// segments or have one of their own. Free neighbours coalesce, so a segment that holds no block is one free block.
#include "core/device/caching_allocator.h"

#include <atomic>
#include <iomanip>
#include <utility>

#include "core/base/error.h"
#include "core/device/exact_memory.h"

namespace castor {
namespace {

constexpr std::size_t kAlignment = 256;
constexpr std::size_t kMiB = std::size_t{1} << 20;
constexpr std::size_t kSmallLimit = kMiB;
constexpr std::size_t kSmallSegment = 2 * kMiB;
constexpr std::size_t kLargeSegment = 32 * kMiB;
constexpr std::size_t kSharedLimit = 16 * kMiB;  // larger requests get a segment of their own

std::size_t round_up(std::size_t bytes, std::size_t unit) { return (bytes + unit - 1) / unit * unit; }

thread_local Category current_category = Category::activations;

std::atomic<bool> is_exact{false};

thread_local const CachingAllocator* in_private_memory = nullptr;

}  // namespace

void set_exact_memory(bool wanted) { is_exact = wanted; }

struct CachingAllocator::Segment {
  std::uint64_t serial = 0;
  void* data = nullptr;
  std::size_t bytes = 0;
  bool is_small = false;
  Pools* pools = nullptr;
};

struct CachingAllocator::Block {
  Segment* segment = nullptr;
  std::size_t offset = 0;  // from the segment's start
  std::size_t bytes = 0;
  bool is_free = true;
  Category category = Category::activations;
  Block* previous = nullptr;  // neighbours in the segment
  Block* next = nullptr;
};

bool CachingAllocator::BySize::operator()(const Block* a, const Block* b) const {
  if (a->bytes != b->bytes) return a->bytes < b->bytes;
  if (a->segment->serial != b->segment->serial) return a->segment->serial < b->segment->serial;
  return a->offset < b->offset;
}

std::string_view category_name(Category category) {
  constexpr std::string_view kNames[] = {"parameters", "gradients", "optimizer", "activations", "workspace", "buffers"};
  return kNames[static_cast<int>(category)];
}

CategoryScope::CategoryScope(Category category) : previous_(current_category) { current_category = category; }
CategoryScope::~CategoryScope() { current_category = previous_; }
Category CategoryScope::current() { return current_category; }

CachingAllocator::PrivateScope::PrivateScope(const CachingAllocator& allocator)
    : previous_(std::exchange(in_private_memory, &allocator)) {}
CachingAllocator::PrivateScope::~PrivateScope() { in_private_memory = previous_; }

CachingAllocator::CachingAllocator(Backend& backend, Device device) : backend_(backend), device_(device) {}

CachingAllocator::~CachingAllocator() {
  release_cached_locked();
  std::swap(shared_, private_);
  release_cached_locked();
}

void* CachingAllocator::data(const Block* block) { return static_cast<char*>(block->segment->data) + block->offset; }

std::size_t CachingAllocator::size(const Block* block) { return block->bytes; }

void CachingAllocator::set_limit(std::size_t bytes) {
  const std::lock_guard lock(mutex_);
  limit_ = bytes;
}

std::size_t CachingAllocator::limit() const {
  const std::lock_guard lock(mutex_);
  return limit_;
}

MemoryStats CachingAllocator::stats() const {
  const std::lock_guard lock(mutex_);
  return stats_;
}

void CachingAllocator::reset_peaks() {
  const std::lock_guard lock(mutex_);
  stats_.peak = stats_.current;
  stats_.at_peak = stats_.current;
  stats_.peak_total = stats_.current_total;
  stats_.peak_reserved = stats_.reserved;
}

void CachingAllocator::count(const Block& block, bool added) {
  const auto category = static_cast<std::size_t>(block.category);
  if (!added) {
    stats_.current[category] -= block.bytes;
    stats_.current_total -= block.bytes;
    return;
  }
  stats_.current[category] += block.bytes;
  stats_.current_total += block.bytes;
  ++stats_.allocations;
  stats_.peak[category] = std::max(stats_.peak[category], stats_.current[category]);
  if (stats_.current_total > stats_.peak_total) {
    stats_.peak_total = stats_.current_total;
    stats_.at_peak = stats_.current;
  }
}

CachingAllocator::Block* CachingAllocator::take(FreeBlocks& pool, std::size_t bytes, std::size_t least_remainder) {
  Segment probe_segment;
  Block probe;
  probe.segment = &probe_segment;
  probe.bytes = bytes;
  const auto found = pool.lower_bound(&probe);
  if (found == pool.end()) return nullptr;
  Block* block = *found;
  pool.erase(found);
  if (block->bytes - bytes >= least_remainder) {
    auto* rest = new Block;
    rest->segment = block->segment;
    rest->offset = block->offset + bytes;
    rest->bytes = block->bytes - bytes;
    rest->previous = block;
    rest->next = block->next;
    if (rest->next != nullptr) rest->next->previous = rest;
    block->next = rest;
    block->bytes = bytes;
    pool.insert(rest);
  }
  return block;
}

CachingAllocator::Block* CachingAllocator::grow(Pools& pools, bool is_small, std::size_t bytes) {
  std::size_t wanted = is_small ? kSmallSegment : bytes <= kSharedLimit ? kLargeSegment : round_up(bytes, 2 * kMiB);
  if (is_exact) wanted = bytes;
  const auto fits = [&](std::size_t size) { return limit_ == 0 || stats_.reserved + size <= limit_; };
  void* data = nullptr;
  // First as wished, then after giving the cache back, then the least that serves.
  for (int attempt = 0; attempt < 3 && data == nullptr; ++attempt) {
    // Work that is being recorded cannot wait for the device, as giving memory back does.
    if (attempt == 1 && &pools == &shared_) release_cached_locked();
    if (attempt == 2) wanted = bytes;
    if (fits(wanted)) data = backend_.allocate(wanted);
  }
  if (data == nullptr) {
    const std::size_t total = limit_ != 0 ? limit_ : backend_.total_bytes();
    const std::size_t left = total > stats_.reserved ? total - stats_.reserved : 0;
    throw OutOfMemory(
        cat("allocate on ", device_, ": ", bytes_text(bytes), " for ", category_name(current_category),
            " does not fit: ", bytes_text(left), " free of ", limit_ != 0 ? "the limit of " : "", bytes_text(total),
            "\n", memory_table(stats_), "Use a smaller micro-batch, recompute activations, or a larger limit."),
        bytes, left, total);
  }
  auto segment = std::make_unique<Segment>();
  segment->serial = next_segment_++;
  segment->data = data;
  segment->bytes = wanted;
  segment->is_small = is_small;
  segment->pools = &pools;
  auto* block = new Block;
  block->segment = segment.get();
  block->bytes = wanted;
  stats_.reserved += wanted;
  stats_.peak_reserved = std::max(stats_.peak_reserved, stats_.reserved);
  ++stats_.system_allocations;
  segments_.emplace(segment->serial, std::move(segment));
  return block;
}

CachingAllocator::Block* CachingAllocator::allocate(std::size_t bytes) {
  const std::size_t least = std::max<std::size_t>(bytes, 1), rounded = round_up(least, kAlignment);
  const std::lock_guard lock(mutex_);
  Pools& pools = in_private_memory == this ? private_ : shared_;
  const bool is_small = rounded <= kSmallLimit;
  FreeBlocks& pool = is_small ? pools.small : pools.large;
  const std::size_t least_remainder = is_small ? kAlignment : kSmallLimit;
  Block* block = is_exact ? grow(pools, is_small, least) : take(pool, rounded, least_remainder);
  if (block == nullptr) {
    pool.insert(grow(pools, is_small, rounded));
    block = take(pool, rounded, least_remainder);
  }
  block->is_free = false;
  block->category = current_category;
  count(*block, true);
  return block;
}

void CachingAllocator::release(Block* block) {
  const std::lock_guard lock(mutex_);
  count(*block, false);
  block->is_free = true;
  Pools& pools = *block->segment->pools;
  FreeBlocks& pool = block->segment->is_small ? pools.small : pools.large;
  const auto absorb = [&](Block* left, Block* right) {
    left->bytes += right->bytes;
    left->next = right->next;
    if (left->next != nullptr) left->next->previous = left;
    delete right;
  };
  if (block->next != nullptr && block->next->is_free) {
    pool.erase(block->next);
    absorb(block, block->next);
  }
  if (block->previous != nullptr && block->previous->is_free) {
    Block* left = block->previous;
    pool.erase(left);
    absorb(left, block);
    block = left;
  }
  pool.insert(block);
  if (is_exact) release_cached_locked();
}

void CachingAllocator::release_cached() {
  const std::lock_guard lock(mutex_);
  release_cached_locked();
}

void CachingAllocator::release_cached_locked() {
  for (FreeBlocks* pool : {&shared_.small, &shared_.large}) {
    for (auto it = pool->begin(); it != pool->end();) {
      Block* block = *it;
      if (block->previous != nullptr || block->next != nullptr) {
        ++it;
        continue;
      }
      it = pool->erase(it);
      backend_.deallocate(block->segment->data, block->segment->bytes);
      stats_.reserved -= block->segment->bytes;
      segments_.erase(block->segment->serial);
      delete block;
    }
  }
}

void CachingAllocator::set_category(Block* block, Category category) {
  const std::lock_guard lock(mutex_);
  const auto from = static_cast<std::size_t>(block->category), to = static_cast<std::size_t>(category);
  stats_.current[from] -= block->bytes;
  stats_.current[to] += block->bytes;
  stats_.peak[to] = std::max(stats_.peak[to], stats_.current[to]);
  block->category = category;
}

std::string bytes_text(std::size_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  int unit = 0;
  while (value >= 1024.0 && unit < 4) {
    value /= 1024.0;
    ++unit;
  }
  std::ostringstream out;
  out << std::fixed << std::setprecision(unit == 0 ? 0 : value < 10 ? 2 : 1) << value << ' ' << kUnits[unit];
  return out.str();
}

std::string memory_table(const MemoryStats& stats) {
  std::ostringstream out;
  out << std::left << std::setw(14) << "category" << std::right << std::setw(12) << "now" << std::setw(12) << "peak"
      << std::setw(12) << "at peak" << '\n';
  for (int i = 0; i < kCategoryCount; ++i) {
    out << std::left << std::setw(14) << category_name(static_cast<Category>(i)) << std::right << std::setw(12)
        << bytes_text(stats.current[i]) << std::setw(12) << bytes_text(stats.peak[i]) << std::setw(12)
        << bytes_text(stats.at_peak[i]) << '\n';
  }
  out << std::left << std::setw(14) << "total" << std::right << std::setw(12) << bytes_text(stats.current_total)
      << std::setw(12) << bytes_text(stats.peak_total) << std::setw(12) << bytes_text(stats.peak_total) << '\n'
      << std::left << std::setw(14) << "reserved" << std::right << std::setw(12) << bytes_text(stats.reserved)
      << std::setw(12) << bytes_text(stats.peak_reserved) << '\n';
  return out.str();
}

}  // namespace castor
