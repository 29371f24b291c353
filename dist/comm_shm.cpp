// One rank offers memory, all vote whether they could map it, the first announces the result. Delicate: a process
// number may mean another process in another container, so the memory carries a random mark that the offer names.
#include "dist/comm_shm.h"

#include <cstring>
#include <sstream>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "dist/ring_memory.h"
#include "dist/secret.h"

namespace castor::dist {
namespace {

constexpr std::size_t kPage = 4096;

/// A descriptor that closes itself.
class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (number_ >= 0) close(number_);
  }
  int number() const { return number_; }

 private:
  int number_;
};

std::shared_ptr<void> map(int descriptor, std::size_t bytes) {
  void* start = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  if (start == MAP_FAILED) return nullptr;
  return {start, [bytes](void* p) { munmap(p, bytes); }};
}

char* mark_of(void* memory, std::size_t bytes) { return static_cast<char*>(memory) + bytes - kPage; }

/// Maps what another process offers; null if it cannot be reached from here.
std::shared_ptr<void> take(const std::string& offer, std::size_t bytes) {
  std::istringstream fields(offer);
  long process = 0;
  int number = 0;
  std::string mark;
  if (!(fields >> process >> number >> mark)) return nullptr;
  const Descriptor descriptor(open(cat("/proc/", process, "/fd/", number).c_str(), O_RDWR | O_CLOEXEC));
  struct stat status {};
  if (descriptor.number() < 0 || fstat(descriptor.number(), &status) != 0 ||
      status.st_size != static_cast<off_t>(bytes)) {
    return nullptr;
  }
  auto memory = map(descriptor.number(), bytes);
  if (memory && std::memcmp(mark_of(memory.get(), bytes), mark.data(), mark.size()) != 0) return nullptr;
  return memory;
}

}  // namespace

std::unique_ptr<Link> connect_shared_memory(Store& store, const Health& health, const std::string& name,
                                            const std::vector<int>& members, int rank,
                                            std::chrono::milliseconds limit) {
  const int size = static_cast<int>(members.size());
  const std::size_t bytes = RingMemory::bytes_for(size) + kPage;
  const std::string key = cat("shm/", name);
  std::shared_ptr<void> memory;
  std::string verdict;
  if (rank == 0) {
    const Descriptor descriptor(memfd_create("castor ranks", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    // Sealed: no process can shorten it under the feet of the others.
    const bool made = descriptor.number() >= 0 && ftruncate(descriptor.number(), static_cast<off_t>(bytes)) == 0 &&
                      fcntl(descriptor.number(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0;
    if (made) memory = map(descriptor.number(), bytes);
    const std::string mark = JobSecret::random().text();
    if (memory) std::memcpy(mark_of(memory.get(), bytes), mark.data(), mark.size());
    store.set(key, memory ? cat(getpid(), " ", descriptor.number(), " ", mark) : std::string("none"));
    verdict = memory ? "yes" : "no";
    for (int place = 1; place < size; ++place) {
      if (wait_for_key(store, health, cat(key, "/", place), limit) != "yes") verdict = "no";
    }
    store.set(key + "/all", verdict);
  } else {
    memory = take(wait_for_key(store, health, key, limit), bytes);
    store.set(cat(key, "/", rank), memory ? "yes" : "no");
    verdict = wait_for_key(store, health, key + "/all", limit);
  }
  if (verdict != "yes") return nullptr;
  return std::make_unique<RingLink>(std::make_shared<RingMemory>(std::move(memory), size), rank, members, health);
}

}  // namespace castor::dist
