// First fit over ranges of huge pages. Delicate: shared memory gets huge pages only on demand, whatever the system's
// setting for it, and a range is asked for them before anyone touches it: filling holes is cheap, moving pages is not.
#include "core/device/shared_heap.h"

#include <atomic>
#include <sstream>

#include <sys/mman.h>

#include "core/base/error.h"
#include "core/base/host_memory.h"

namespace castor {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr int kAdviseCollapse = 25;  // MADV_COLLAPSE, Linux 6.1; older kernels refuse it and keep small pages

std::size_t whole_pages(std::size_t bytes) { return (bytes + kHugePage - 1) / kHugePage * kHugePage; }

std::atomic<SharedHeap*> process_heap{nullptr};

}  // namespace

SharedHeap::SharedHeap(std::unique_ptr<SharedMemory> memory) : memory_(std::move(memory)) {
  free_[0] = memory_->bytes() / kHugePage * kHugePage;
}

SharedHeap* SharedHeap::open() {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  if (current() == nullptr) {
    if (auto memory = SharedMemory::make(whole_pages(host_memory().total))) {
      process_heap = new SharedHeap(std::move(memory));  // for good: tensors may outlive main
    }
  }
  return current();
}

SharedHeap* SharedHeap::current() { return process_heap.load(std::memory_order_acquire); }

void* SharedHeap::allocate(std::size_t bytes) {
  const std::size_t wanted = whole_pages(bytes);
  const std::lock_guard lock(mutex_);
  for (auto range = free_.begin(); range != free_.end(); ++range) {
    const auto [offset, length] = *range;
    if (length < wanted) continue;
    free_.erase(range);
    if (length > wanted) free_[offset + wanted] = length - wanted;
    std::byte* const data = memory_->data() + offset;
    madvise(data, wanted, kAdviseCollapse);
    return data;
  }
  return nullptr;
}

bool SharedHeap::deallocate(void* data, std::size_t bytes) {
  const auto place = offset_of({static_cast<const std::byte*>(data), bytes});
  if (!place) return false;
  std::size_t offset = *place;
  std::size_t length = whole_pages(bytes);
  memory_->discard(offset, length);
  const std::lock_guard lock(mutex_);
  auto next = free_.lower_bound(offset);
  if (next != free_.end() && next->first == offset + length) {
    length += next->second;
    next = free_.erase(next);
  }
  if (next != free_.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second == offset) {
      offset = before->first;
      length += before->second;
    }
  }
  free_[offset] = length;
  return true;
}

std::optional<std::size_t> SharedHeap::offset_of(std::span<const std::byte> bytes) const {
  const auto start = reinterpret_cast<std::uintptr_t>(memory_->data());
  const auto first = reinterpret_cast<std::uintptr_t>(bytes.data());
  if (first < start || first - start > memory_->bytes() || bytes.size() > memory_->bytes() - (first - start)) return {};
  return first - start;
}

std::string SharedHeap::address() const { return cat(memory_->bytes(), " ", memory_->address()); }

std::shared_ptr<const PeerHeap> PeerHeap::map(const std::string& address) {
  std::istringstream text(address);
  std::size_t bytes = 0;
  std::string place;
  if (!(text >> bytes) || !std::getline(text, place)) return nullptr;
  auto memory = SharedMemory::take(place, bytes, SharedMemory::Access::kRead);
  if (!memory) return nullptr;
  return std::shared_ptr<const PeerHeap>(new PeerHeap(std::move(memory)));
}

const std::byte* PeerHeap::at(std::size_t offset, std::size_t bytes) const {
  if (offset > memory_->bytes() || bytes > memory_->bytes() - offset) return nullptr;
  return memory_->data() + offset;
}

}  // namespace castor
