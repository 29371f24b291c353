// Feeds the allocation watch from malloc, which the sanitizers let others listen to.
//
// Delicate: programs without a sanitizer (those that measure coverage) lack the functions; then nothing is watched.
#include <cstddef>

#include "tests/support/allocation_watch.h"

// NOLINTBEGIN(readability-identifier-naming): the sanitizers prescribe the names
extern "C" {
__attribute__((weak)) int __sanitizer_install_malloc_and_free_hooks(void (*allocated)(const volatile void*,
                                                                                      std::size_t),
                                                                    void (*released)(const volatile void*));
__attribute__((weak)) std::size_t __sanitizer_get_allocated_size(const volatile void* memory);
}
// NOLINTEND(readability-identifier-naming)

namespace castor::test {

void listen_to_allocations() {
  static bool is_listening = false;
  if (is_listening || __sanitizer_install_malloc_and_free_hooks == nullptr) return;
  is_listening = __sanitizer_install_malloc_and_free_hooks(
                     [](const volatile void*, std::size_t bytes) { AllocationWatch::note_allocation(bytes); },
                     [](const volatile void* memory) {
                       AllocationWatch::note_release(__sanitizer_get_allocated_size(memory));
                     }) != 0;
}

}  // namespace castor::test
