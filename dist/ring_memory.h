// Rings of bytes in memory that ranks share: one ring for each ordered pair, one bell for each rank. The memory may be
// a process's own (ranks as threads) or mapped by several (ranks of one host); this code does not tell them apart.
//
// Delicate: one writer and one reader a ring, each moving one counter; a bell is a counter that its rank sleeps on
// (futex), rung after every move of one of its streams. A killed writer leaves whole bytes or none behind its counter.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "core/device/shared_heap.h"
#include "dist/link.h"

namespace castor::dist {

/// The layout of a group's shared memory.
class RingMemory {
 public:
  /// Bytes that `ranks` ranks need.
  static std::size_t bytes_for(int ranks);
  /// Takes over zeroed (or already used) memory of bytes_for(ranks) bytes, aligned to a page; `owner` keeps it mapped.
  RingMemory(std::shared_ptr<void> owner, int ranks);

  int ranks() const { return ranks_; }
  /// Moves bytes in and out; as Link::try_send and try_receive.
  std::size_t write(int from, int to, std::span<const std::byte> bytes);
  std::size_t read(int from, int to, std::span<std::byte> into);
  /// Bytes to read that lie together, and their end; as Link::lent and give_back.
  std::span<const std::byte> lent(int from, int to) const;
  void give_back(int from, int to, std::size_t bytes);
  std::uint32_t ticket(int rank) const;
  /// Sleeps until a stream of `rank` has moved since `ticket`, at most `limit`.
  void sleep(int rank, std::uint32_t ticket, std::chrono::milliseconds limit);

 private:
  struct Ring;
  struct Bell;
  static std::size_t ring_bytes(int ranks);
  Bell& bell(int rank) const;
  Ring& ring(int from, int to) const;
  std::byte* data(int from, int to) const;
  void toll(int rank);

  std::shared_ptr<void> owner_;
  int ranks_;
  std::size_t capacity_;
};

/// Private memory of `bytes` zero bytes, aligned to a page; pages cost nothing until they are touched.
/// Throws OutOfMemory.
std::shared_ptr<void> map_private_memory(std::size_t bytes);

/// The heaps of a group's ranks, by place, as they can be read here; empty where one of them cannot.
using PeerHeaps = std::vector<std::shared_ptr<const PeerHeap>>;

/// Links over rings.
class RingLink final : public Link {
 public:
  ///   members  the job's rank of each place, by which `health` knows who has left
  ///   heaps    what of the ranks' memory is read where it lies
  RingLink(std::shared_ptr<RingMemory> memory, int rank, std::vector<int> members, const Health& health,
           PeerHeaps heaps = {})
      : memory_(std::move(memory)),
        rank_(rank),
        members_(std::move(members)),
        health_(health),
        heaps_(std::move(heaps)) {}

  int rank() const override { return rank_; }
  int size() const override { return memory_->ranks(); }
  std::size_t try_send(int peer, std::span<const std::byte> bytes) override {
    return memory_->write(rank_, peer, bytes);
  }
  std::size_t try_receive(int peer, std::span<std::byte> into) override { return memory_->read(peer, rank_, into); }
  bool lends() const override { return true; }
  std::span<const std::byte> lent(int peer) override { return memory_->lent(peer, rank_); }
  void give_back(int peer, std::size_t bytes) override { memory_->give_back(peer, rank_, bytes); }
  std::optional<std::size_t> place_of(std::span<const std::byte> bytes) const override {
    if (heaps_.empty()) return {};
    return SharedHeap::current()->offset_of(bytes);
  }
  const std::byte* at_peer(int peer, std::size_t place, std::size_t bytes) const override;
  bool gone(int peer) override { return health_.has_left(members_[static_cast<std::size_t>(peer)]); }
  std::uint32_t ticket() override { return memory_->ticket(rank_); }
  void wait(std::uint32_t ticket, std::span<const int>, std::span<const int>,
            std::chrono::milliseconds limit) override {
    memory_->sleep(rank_, ticket, limit);
  }

 private:
  std::shared_ptr<RingMemory> memory_;
  int rank_;
  std::vector<int> members_;
  const Health& health_;
  PeerHeaps heaps_;
};

}  // namespace castor::dist
