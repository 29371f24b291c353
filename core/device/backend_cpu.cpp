// Host memory as a device: one queue that is always complete. Large segments ask for huge pages, which spares the TLB
// when kernels stream through hundreds of megabytes. Where ranks share a machine, they come from the heap that the
// others can read.
#include "core/device/backend_cpu.h"

#include <cstdlib>
#include <cstring>

#include <sys/mman.h>

#include "core/base/host_memory.h"
#include "core/device/shared_heap.h"

namespace castor {

namespace {
constexpr std::size_t kHugePage = std::size_t{2} << 20;
}  // namespace

void* CpuBackend::allocate(std::size_t bytes) {
  if (SharedHeap* heap = SharedHeap::current(); heap != nullptr && bytes >= kHugePage) {
    if (void* shared = heap->allocate(bytes)) return shared;
  }
  return allocate_private(bytes);
}

void* CpuBackend::allocate_private(std::size_t bytes) {
  const std::size_t alignment = bytes >= kHugePage ? kHugePage : 512;
  void* data = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (data != nullptr && bytes >= kHugePage) madvise(data, bytes, MADV_HUGEPAGE);
  return data;
}

void CpuBackend::deallocate(void* data, std::size_t bytes) {
  SharedHeap* const heap = SharedHeap::current();
  if (heap == nullptr || !heap->deallocate(data, bytes)) std::free(data);
}
void CpuBackend::copy_within(void* to, const void* from, std::size_t bytes) { std::memmove(to, from, bytes); }
void CpuBackend::copy_from_host(void* to, const void* from, std::size_t bytes) { std::memmove(to, from, bytes); }
void CpuBackend::copy_to_host(void* to, const void* from, std::size_t bytes) { std::memmove(to, from, bytes); }
void CpuBackend::fill_zero(void* data, std::size_t bytes) { std::memset(data, 0, bytes); }
void* CpuBackend::stream() { return nullptr; }
Event CpuBackend::record() { return {}; }
void CpuBackend::wait(const Event&) {}
void CpuBackend::synchronize() {}

std::size_t CpuBackend::total_bytes() const {
  static const std::size_t total = host_memory().total;
  return total;
}

}  // namespace castor
