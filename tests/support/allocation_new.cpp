// Feeds the allocation watch from operator new, which it replaces in the whole program.
//
// Delicate: what is released counts as the allocator rounded it up, a few bytes more than was asked for and taken.
#include <cstdlib>
#include <new>

#include <malloc.h>

#include "tests/support/allocation_watch.h"

namespace castor::test {

void listen_to_allocations() {}

}  // namespace castor::test

void* operator new(std::size_t bytes) {
  void* const memory = std::malloc(bytes == 0 ? 1 : bytes);
  if (memory == nullptr) throw std::bad_alloc();
  castor::test::AllocationWatch::note_allocation(bytes);
  return memory;
}

void operator delete(void* memory) noexcept {
  if (memory != nullptr) castor::test::AllocationWatch::note_release(malloc_usable_size(memory));
  std::free(memory);
}

void operator delete(void* memory, std::size_t) noexcept { operator delete(memory); }
