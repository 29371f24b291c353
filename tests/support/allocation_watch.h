// How much memory a piece of code asks for: the largest single allocation, and the most that it held at a time.
//
// Two sources feed it, one a program: allocation_new.cpp replaces operator new, allocation_malloc.cpp listens to the
// sanitizers' malloc. Delicate: what is watched runs inside the allocator, so nothing here may allocate.
#pragma once

#include <cstddef>
#include <limits>

namespace castor::test {

/// Watches the thread that made it until it ends. One at a time a thread.
class AllocationWatch {
 public:
  static constexpr std::size_t kNoLimit = std::numeric_limits<std::size_t>::max();

  /// An allocation of more than `limit` bytes ends the program on the spot, so that a stack trace shows who asked.
  explicit AllocationWatch(std::size_t limit = kNoLimit);
  ~AllocationWatch();
  AllocationWatch(const AllocationWatch&) = delete;
  AllocationWatch& operator=(const AllocationWatch&) = delete;

  /// Bytes of the largest allocation so far.
  std::size_t largest() const { return largest_; }
  /// The most bytes that were allocated since the watch began and not yet released.
  std::size_t peak() const { return peak_; }

  /// For the sources.
  static void note_allocation(std::size_t bytes);
  static void note_release(std::size_t bytes);

 private:
  std::size_t limit_;
  std::size_t largest_ = 0;
  std::size_t held_ = 0;
  std::size_t peak_ = 0;
};

/// Turns the source of this program on, where it needs that: before the first watch.
void listen_to_allocations();

}  // namespace castor::test
