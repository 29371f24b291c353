// One rank offers memory, all vote whether they could map it, the first announces the result. Delicate: the vote covers
// the rings only; heaps are offered by each rank, and used if every rank says that it could map all of them.
#include "dist/comm_shm.h"

#include "core/base/shared_memory.h"
#include "dist/ring_memory.h"

namespace castor::dist {
namespace {

/// What all ranks say under a key: "yes" only if every one of them does.
class Vote {
 public:
  Vote(Store& store, const Health& health, std::string key, int rank, int size, std::chrono::milliseconds limit)
      : store_(store), health_(health), key_(std::move(key)), rank_(rank), size_(size), limit_(limit) {}

  bool all(bool own) {
    store_.set(cat(key_, "/", rank_), own ? "yes" : "no");
    if (rank_ != 0) return wait_for_key(store_, health_, key_ + "/all", limit_) == "yes";
    for (int place = 1; place < size_; ++place) {
      if (wait_for_key(store_, health_, cat(key_, "/", place), limit_) != "yes") own = false;
    }
    store_.set(key_ + "/all", own ? "yes" : "no");
    return own;
  }

 private:
  Store& store_;
  const Health& health_;
  std::string key_;
  int rank_;
  int size_;
  std::chrono::milliseconds limit_;
};

/// All ranks' heaps, or none if a rank has none or cannot map another's.
PeerHeaps exchange_heaps(Store& store, const Health& health, const std::string& key, int rank, int size,
                         std::chrono::milliseconds limit) {
  const SharedHeap* own = SharedHeap::current();
  store.set(cat(key, "/", rank, "/at"), own != nullptr ? own->address() : std::string());
  PeerHeaps heaps;
  bool mapped = true;
  for (int place = 0; place < size; ++place) {
    const std::string address = wait_for_key(store, health, cat(key, "/", place, "/at"), limit);
    heaps.push_back(mapped ? PeerHeap::map(address) : nullptr);
    mapped = heaps.back() != nullptr;
  }
  if (!Vote(store, health, key, rank, size, limit).all(mapped)) return {};
  return heaps;
}

}  // namespace

std::unique_ptr<Link> connect_shared_memory(Store& store, const Health& health, const std::string& name,
                                            const std::vector<int>& members, int rank,
                                            std::chrono::milliseconds limit) {
  const int size = static_cast<int>(members.size());
  const std::size_t bytes = RingMemory::bytes_for(size);
  const std::string key = cat("shm/", name);
  std::shared_ptr<SharedMemory> memory;
  if (rank == 0) {
    memory = SharedMemory::make(bytes);
    store.set(key, memory ? memory->address() : std::string("none"));
  } else {
    memory = SharedMemory::take(wait_for_key(store, health, key, limit), bytes, SharedMemory::Access::kReadWrite);
  }
  if (!Vote(store, health, key, rank, size, limit).all(memory != nullptr)) return nullptr;
  PeerHeaps heaps = exchange_heaps(store, health, key + "/heap", rank, size, limit);
  std::shared_ptr<void> rings(memory, memory->data());
  return std::make_unique<RingLink>(std::make_shared<RingMemory>(std::move(rings), size), rank, members, health,
                                    std::move(heaps));
}

}  // namespace castor::dist
