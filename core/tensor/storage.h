// The bytes behind tensors, as one object that all views share, so that they can be taken away and brought back: Gemini
// re-points a parameter's storage between forward and backward, and every saved tensor sees it.
//
// Delicate: a raw pointer taken from a storage is valid only until the next re-pointing, so kernels take it at launch.
// Re-pointing waits on the events of earlier uses in stream order; a use while there are no bytes throws with the
// storage's history.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/device/caching_allocator.h"

namespace castor {

/// Brings a storage's bytes when they are used: told of every use of the address, before it is given out.
class StoragePager {
 public:
  virtual ~StoragePager() = default;
  /// May move bytes; when it returns the storage has some, or the use throws.
  virtual void touch() = 0;
  /// Copies bytes from `offset` on out or in without bringing them to an address, from any thread. False: this pager
  /// has no other place for them.
  virtual bool read(std::size_t offset, std::span<std::byte> out) {
    static_cast<void>(offset), static_cast<void>(out);
    return false;
  }
  virtual bool write(std::size_t offset, std::span<const std::byte> data) {
    static_cast<void>(offset), static_cast<void>(data);
    return false;
  }
};

class Storage {
 public:
  /// `bytes` bytes from the device's allocator for the thread's current category. Throws OutOfMemory.
  Storage(std::size_t bytes, Device device);
  /// No bytes yet: `point_to` brings them.
  static std::shared_ptr<Storage> make_empty(std::size_t bytes, Device device);
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  Device device() const { return device_; }
  std::size_t bytes() const { return bytes_; }
  bool has_data() const { return data_ != nullptr; }

  /// The address, at launch. Throws DeviceError with the history when the storage has no bytes; what a pager throws.
  void* data() const {
    if (pager_ != nullptr) [[unlikely]]
      pager_->touch();
    if (data_ == nullptr) [[unlikely]]
      throw_no_data();
    return data_;
  }

  /// Copies bytes from `offset` on out or in, from wherever they are: for those who stream states through bounded
  /// buffers. Both wait for the device.
  void read(std::size_t offset, std::span<std::byte> out) const;
  void write(std::size_t offset, std::span<const std::byte> data) const;

  /// From now on the bytes are at `data`, kept alive by `owner`, usable after `ready`; the previous ones are given up.
  ///   reason   goes into the history: a text with static lifetime, e.g. "gathered"
  void point_to(void* data, std::shared_ptr<void> owner, Event ready, const char* reason);
  /// Gives the bytes up. A use before the next `point_to` throws.
  void drop(const char* reason);
  /// Takes bytes from the allocator again (uninitialised).
  void allocate(const char* reason);

  /// From now on `pager`, which must outlive this or be taken away with null, is told of every use.
  void set_pager(StoragePager* pager) { pager_ = pager; }
  /// True if the address may change between uses.
  bool has_pager() const { return pager_ != nullptr; }

  /// Counts the bytes under another category from now on: a kernel's result that turned out to be a gradient.
  void set_category(Category category);

  /// Says that work up to now on the device's queue uses the bytes; `point_to` and `drop` wait for it.
  void record_use();

 private:
  Storage(std::size_t bytes, Device device, bool allocate);
  void release();
  void note(const char* reason);
  [[noreturn]] void throw_no_data() const;

  Device device_;
  std::size_t bytes_;
  void* data_ = nullptr;
  StoragePager* pager_ = nullptr;
  CachingAllocator::Block* block_ = nullptr;  // set when the allocator owns the bytes
  std::shared_ptr<void> owner_;               // set when someone else does
  std::vector<Event> uses_;
  std::vector<const char*> history_;
};

}  // namespace castor
