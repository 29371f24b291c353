// The part of a process's host memory that other processes of the machine can read: ranks that share one take each
// other's tensors from where they lie, instead of passing them through a pipe.
//
// One heap a process, as large as the machine's memory; it costs nothing until it is used. Once it is open,
// `CpuBackend` takes its large segments from it, so every large tensor that is made from then on lies there. Delicate:
// others map the whole heap once and for reading only. What is given back to the heap is given back to the system,
// whoever still maps it; what is in a range is the business of those who agree on its use (dist/direct.h).
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>

#include "core/base/shared_memory.h"

namespace castor {

class SharedHeap {
 public:
  /// Opens this process's heap unless it is open. Null where the system refuses; then nothing changes.
  static SharedHeap* open();
  /// This process's heap, or null.
  static SharedHeap* current();

  /// For tests; a process has one, which `open` makes.
  explicit SharedHeap(std::unique_ptr<SharedMemory> memory);

  /// A range of whole huge pages (2 MiB), aligned to them; null when none is left.
  void* allocate(std::size_t bytes);
  /// Takes a range back, `bytes` as it was asked for. False if it is not of this heap.
  bool deallocate(void* data, std::size_t bytes);
  /// How far from the heap's start these bytes lie; none if they are elsewhere.
  std::optional<std::size_t> offset_of(std::span<const std::byte> bytes) const;
  /// What `PeerHeap::map` needs.
  std::string address() const;

 private:
  std::unique_ptr<SharedMemory> memory_;
  std::mutex mutex_;
  std::map<std::size_t, std::size_t> free_;  // offset: bytes; neighbours are one
};

/// Another process's heap, or this one's, to be read.
class PeerHeap {
 public:
  /// Null if it cannot be reached from here.
  static std::shared_ptr<const PeerHeap> map(const std::string& address);

  /// Where bytes of it lie here; null if they are beyond its end.
  const std::byte* at(std::size_t offset, std::size_t bytes) const;

 private:
  explicit PeerHeap(std::unique_ptr<SharedMemory> memory) : memory_(std::move(memory)) {}
  std::unique_ptr<SharedMemory> memory_;
};

}  // namespace castor
