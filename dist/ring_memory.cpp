// Counters, copies and the futex. Delicate: counters come from memory that another process writes, so they are checked
// before they are believed; a nonsense distance ends the stream instead of copying out of bounds.
#include "dist/ring_memory.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <new>

#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

namespace castor::dist {
namespace {

constexpr std::size_t kLine = 64;
constexpr std::size_t kPage = 4096;
constexpr std::size_t kLargestRing = std::size_t{512} << 10;
constexpr std::size_t kSmallestRing = std::size_t{16} << 10;
constexpr std::size_t kAllRings = std::size_t{64} << 20;  // what the rings of a group should not exceed
constexpr std::size_t kPiece = std::size_t{64} << 10;     // copied before the other side is told

std::size_t round_up(std::size_t value, std::size_t unit) { return (value + unit - 1) / unit * unit; }

}  // namespace

struct RingMemory::Ring {
  alignas(kLine) std::atomic<std::uint64_t> written;  // bytes ever put in
  alignas(kLine) std::atomic<std::uint64_t> taken;    // bytes ever taken out
};

struct RingMemory::Bell {
  alignas(kLine) std::atomic<std::uint32_t> tolls;
  std::atomic<std::uint32_t> asleep;
};

std::size_t RingMemory::ring_bytes(int ranks) {
  static_assert(std::atomic<std::uint64_t>::is_always_lock_free, "counters are shared between processes");
  const auto pairs = static_cast<std::size_t>(ranks) * static_cast<std::size_t>(ranks);
  std::size_t bytes = kLargestRing;
  while (bytes > kSmallestRing && bytes * pairs > kAllRings) bytes /= 2;
  return bytes;
}

std::size_t RingMemory::bytes_for(int ranks) {
  const auto many = static_cast<std::size_t>(ranks);
  return round_up(many * sizeof(Bell) + many * many * sizeof(Ring), kPage) + many * many * ring_bytes(ranks);
}

RingMemory::RingMemory(std::shared_ptr<void> owner, int ranks)
    : owner_(std::move(owner)), ranks_(ranks), capacity_(ring_bytes(ranks)) {}

RingMemory::Bell& RingMemory::bell(int rank) const { return static_cast<Bell*>(owner_.get())[rank]; }

RingMemory::Ring& RingMemory::ring(int from, int to) const {
  auto* rings = reinterpret_cast<Ring*>(static_cast<Bell*>(owner_.get()) + ranks_);
  return rings[from * ranks_ + to];
}

std::byte* RingMemory::data(int from, int to) const {
  const auto many = static_cast<std::size_t>(ranks_);
  const std::size_t start = round_up(many * sizeof(Bell) + many * many * sizeof(Ring), kPage);
  const auto place = static_cast<std::size_t>(from) * many + static_cast<std::size_t>(to);
  return static_cast<std::byte*>(owner_.get()) + start + place * capacity_;
}

void RingMemory::toll(int rank) {
  Bell& target = bell(rank);
  target.tolls.fetch_add(1, std::memory_order_seq_cst);
  if (target.asleep.load(std::memory_order_seq_cst) == 0) return;
  syscall(SYS_futex, &target.tolls, FUTEX_WAKE, 1, nullptr, nullptr, 0);
}

std::size_t RingMemory::write(int from, int to, std::span<const std::byte> bytes) {
  Ring& counters = ring(from, to);
  const std::uint64_t written = counters.written.load(std::memory_order_relaxed);
  const std::uint64_t used = written - counters.taken.load(std::memory_order_acquire);
  if (used > capacity_) throw PeerLost(to, "the counters of the shared ring are broken");
  const std::size_t count = std::min({bytes.size(), capacity_ - static_cast<std::size_t>(used), kPiece});
  if (count == 0) return 0;
  const std::size_t at = static_cast<std::size_t>(written) & (capacity_ - 1);
  const std::size_t before_wrap = std::min(count, capacity_ - at);
  std::memcpy(data(from, to) + at, bytes.data(), before_wrap);
  std::memcpy(data(from, to), bytes.data() + before_wrap, count - before_wrap);
  counters.written.store(written + count, std::memory_order_release);
  toll(to);
  return count;
}

std::size_t RingMemory::read(int from, int to, std::span<std::byte> into) {
  Ring& counters = ring(from, to);
  const std::uint64_t taken = counters.taken.load(std::memory_order_relaxed);
  const std::uint64_t there = counters.written.load(std::memory_order_acquire) - taken;
  if (there > capacity_) throw PeerLost(from, "the counters of the shared ring are broken");
  const std::size_t count = std::min({into.size(), static_cast<std::size_t>(there), kPiece});
  if (count == 0) return 0;
  const std::size_t at = static_cast<std::size_t>(taken) & (capacity_ - 1);
  const std::size_t before_wrap = std::min(count, capacity_ - at);
  std::memcpy(into.data(), data(from, to) + at, before_wrap);
  std::memcpy(into.data() + before_wrap, data(from, to), count - before_wrap);
  counters.taken.store(taken + count, std::memory_order_release);
  toll(from);
  return count;
}

std::span<const std::byte> RingMemory::lent(int from, int to) const {
  const Ring& counters = ring(from, to);
  const std::uint64_t taken = counters.taken.load(std::memory_order_relaxed);
  const std::uint64_t there = counters.written.load(std::memory_order_acquire) - taken;
  if (there > capacity_) throw PeerLost(from, "the counters of the shared ring are broken");
  const std::size_t at = static_cast<std::size_t>(taken) & (capacity_ - 1);
  return {data(from, to) + at, std::min(static_cast<std::size_t>(there), capacity_ - at)};
}

void RingMemory::give_back(int from, int to, std::size_t bytes) {
  std::atomic<std::uint64_t>& taken = ring(from, to).taken;
  taken.store(taken.load(std::memory_order_relaxed) + bytes, std::memory_order_release);
  toll(from);
}

std::uint32_t RingMemory::ticket(int rank) const { return bell(rank).tolls.load(std::memory_order_seq_cst); }

void RingMemory::sleep(int rank, std::uint32_t ticket, std::chrono::milliseconds limit) {
  Bell& own = bell(rank);
  own.asleep.store(1, std::memory_order_seq_cst);
  timespec time{};
  time.tv_sec = static_cast<time_t>(limit.count() / 1000);
  time.tv_nsec = static_cast<long>(limit.count() % 1000) * 1'000'000L;
  // The kernel compares once more, so a toll between the last try and here is not slept through.
  syscall(SYS_futex, &own.tolls, FUTEX_WAIT, ticket, &time, nullptr, 0);
  own.asleep.store(0, std::memory_order_seq_cst);
}

const std::byte* RingLink::at_peer(int peer, std::size_t place, std::size_t bytes) const {
  const std::byte* data = heaps_.at(static_cast<std::size_t>(peer))->at(place, bytes);
  if (data == nullptr) throw PeerLost(peer, "it names a place beyond the end of its memory");
  return data;
}

std::shared_ptr<void> map_private_memory(std::size_t bytes) {
  void* start = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (start == MAP_FAILED) {
    throw OutOfMemory(cat("rings between ranks: cannot map ", bytes, " bytes: ", std::strerror(errno)), bytes, 0, 0);
  }
  return {start, [bytes](void* p) { munmap(p, bytes); }};
}

}  // namespace castor::dist
