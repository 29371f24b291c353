// The watch of each thread. Delicate: memory from before the watch may be released under it; that is not counted.
#include "tests/support/allocation_watch.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

namespace castor::test {
namespace {

thread_local AllocationWatch* current = nullptr;

}  // namespace

AllocationWatch::AllocationWatch(std::size_t limit) : limit_(limit) { current = this; }
AllocationWatch::~AllocationWatch() { current = nullptr; }

void AllocationWatch::note_allocation(std::size_t bytes) {
  AllocationWatch* const watch = current;
  if (watch == nullptr) return;
  watch->largest_ = std::max(watch->largest_, bytes);
  watch->held_ += bytes;
  watch->peak_ = std::max(watch->peak_, watch->held_);
  if (bytes <= watch->limit_) return;
  current = nullptr;
  std::fprintf(stderr, "ERROR: an allocation of %zu bytes, at most %zu are allowed\n", bytes, watch->limit_);
  std::abort();
}

void AllocationWatch::note_release(std::size_t bytes) {
  if (current != nullptr) current->held_ -= std::min(current->held_, bytes);
}

}  // namespace castor::test
