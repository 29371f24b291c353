// Memory for tensors: takes large segments from a backend, cuts blocks from them, and reuses freed blocks, so that a
// training step in its steady state asks the system for nothing. It knows what each block is for, keeps peaks by
// category, and refuses to grow beyond a hard limit. The planner runs the same class over a backend without bytes: that
// is why its prediction and the real run agree.
//
// Delicate: best fit with splitting and coalescing must be a pure function of the sequence of calls (no addresses in
// the ordering), or plan and run would differ.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "core/device/backend.h"

namespace castor {

/// What an allocation is for.
enum class Category : std::uint8_t { parameters, gradients, optimizer, activations, workspace, buffers };
inline constexpr int kCategoryCount = 6;

/// "parameters", "gradients", ...
std::string_view category_name(Category category);

/// The category of allocations made by this thread while the scope lives.
class CategoryScope {
 public:
  explicit CategoryScope(Category category);
  ~CategoryScope();
  CategoryScope(const CategoryScope&) = delete;
  CategoryScope& operator=(const CategoryScope&) = delete;
  static Category current();  ///< `activations` outside any scope

 private:
  Category previous_;
};

/// Bytes in use, by category and in all. Blocks count with their rounded size.
struct MemoryStats {
  std::array<std::size_t, kCategoryCount> current{};  ///< now
  std::array<std::size_t, kCategoryCount> peak{};     ///< each category's own peak
  std::array<std::size_t, kCategoryCount> at_peak{};  ///< each category at the moment of peak_total
  std::size_t current_total = 0;
  std::size_t peak_total = 0;
  std::size_t reserved = 0;  ///< taken from the backend now
  std::size_t peak_reserved = 0;
  std::uint64_t allocations = 0;         ///< blocks handed out so far
  std::uint64_t system_allocations = 0;  ///< segments taken from the backend so far
};

class CachingAllocator {
 public:
  struct Block;

  /// While it lives, this thread's blocks come from segments that serve nothing else and are never given back: memory
  /// that recorded work uses again, each time it is run. All scopes of an allocator share them, so what one run leaves
  /// unused the next may write.
  class PrivateScope {
   public:
    explicit PrivateScope(const CachingAllocator& allocator);
    ~PrivateScope();
    PrivateScope(const PrivateScope&) = delete;
    PrivateScope& operator=(const PrivateScope&) = delete;

   private:
    const CachingAllocator* previous_;
  };

  CachingAllocator(Backend& backend, Device device);
  ~CachingAllocator();
  CachingAllocator(const CachingAllocator&) = delete;
  CachingAllocator& operator=(const CachingAllocator&) = delete;

  /// A block of at least `bytes` bytes (0 is served as 1), aligned to 256, for the thread's current category.
  /// Throws OutOfMemory when the limit or the backend refuses, after giving cached segments back.
  Block* allocate(std::size_t bytes);
  void release(Block* block);
  /// Moves a live block's bytes to another category.
  void set_category(Block* block, Category category);
  static void* data(const Block* block);
  static std::size_t size(const Block* block);  ///< rounded bytes

  /// No growth of `reserved` beyond `bytes`; 0 lifts the limit.
  void set_limit(std::size_t bytes);
  std::size_t limit() const;

  MemoryStats stats() const;
  void reset_peaks();
  /// Gives every segment without blocks back to the backend.
  void release_cached();

 private:
  struct Segment;
  struct BySize {
    bool operator()(const Block* a, const Block* b) const;
  };
  using FreeBlocks = std::set<Block*, BySize>;
  struct Pools {
    FreeBlocks small, large;
  };

  static Block* take(FreeBlocks& pool, std::size_t bytes, std::size_t least_remainder);
  Block* grow(Pools& pools, bool is_small, std::size_t bytes);
  void count(const Block& block, bool added);
  void release_cached_locked();

  Backend& backend_;
  Device device_;
  mutable std::mutex mutex_;
  Pools shared_, private_;
  std::map<std::uint64_t, std::unique_ptr<Segment>> segments_;  // by serial number
  std::uint64_t next_segment_ = 0;
  std::size_t limit_ = 0;
  MemoryStats stats_;
};

/// The six categories and the totals as one table of text, for logs.
std::string memory_table(const MemoryStats& stats);

/// "1.5 GiB", "640 KiB", "12 B".
std::string bytes_text(std::size_t bytes);

}  // namespace castor
