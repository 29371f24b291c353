// What a kind of device must offer below tensors: raw memory, copies, and ordering. A fixed, small set, hence a virtual
// interface; everything that computes goes through `dispatch` instead. A CPU has one queue that is always complete, so
// its events are empty; a CUDA backend maps them to streams and events; tests plug in a fake second device here.
#pragma once

#include <cstddef>
#include <memory>

#include "core/device/device.h"

namespace castor {

/// A point in a device's queue. Empty means "already passed".
using Event = std::shared_ptr<void>;

/// A queue beside a device's own: what it is given runs while the device computes.
class SideQueue {
 public:
  virtual ~SideQueue() = default;
  /// As `Cuda::stream`, ready for a launch by this thread.
  virtual void* stream() = 0;
  /// Copies between any of the device's memory and page-locked host memory.
  virtual void copy(void* to, const void* from, std::size_t bytes) = 0;
  virtual Event record() = 0;                 ///< marks its end
  virtual void wait(const Event& event) = 0;  ///< later work in it starts after `event`
};

/// Work of a device's queue that was recorded, to be done as one as often as it is run: the host then starts one thing
/// where it started hundreds.
class Recording {
 public:
  virtual ~Recording() = default;
  /// Puts it on the device's queue: the same kernels with the same arguments, so the same addresses.
  virtual void run() = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;

  /// At least `bytes` bytes, aligned to 256. Returns nullptr when the device has none left.
  virtual void* allocate(std::size_t bytes) = 0;
  virtual void deallocate(void* data, std::size_t bytes) = 0;

  /// Copies (of ranges that do not overlap) and fills, ordered after earlier work on the device. `copy_from_host`
  /// returns when its source may change again, `copy_to_host` when the bytes are there.
  virtual void copy_within(void* to, const void* from, std::size_t bytes) = 0;
  virtual void copy_from_host(void* to, const void* from, std::size_t bytes) = 0;
  virtual void copy_to_host(void* to, const void* from, std::size_t bytes) = 0;
  virtual void fill_zero(void* data, std::size_t bytes) = 0;

  virtual void*
  stream() = 0;  ///< the current queue, as `Cuda::stream`, ready for a launch by this thread; nullptr on CPU
  virtual Event record() = 0;                           ///< marks the current queue's end
  virtual void wait(const Event& event) = 0;            ///< later work on the current queue starts after `event`
  virtual bool has_passed(const Event& event) = 0;      ///< without waiting
  virtual void wait_on_host(const Event& event) = 0;    ///< returns when it has passed
  virtual std::unique_ptr<SideQueue> open_queue() = 0;  ///< null where there is one queue only, as on a CPU
  virtual void synchronize() = 0;                       ///< returns when all work is done

  /// From here on the queue records what it is given and does none of it, until `end_recording`; what the host would
  /// have to wait for throws DeviceError. False: this device records nothing.
  virtual bool begin_recording() { return false; }
  /// Throws DeviceError where something could not be recorded; the queue works again in any case.
  virtual std::unique_ptr<Recording> end_recording() { return nullptr; }

  virtual std::size_t total_bytes() const = 0;  ///< physical memory; 0 = unknown
};

class CachingAllocator;

/// The backend of a device, made on first use. Throws DeviceError when this build or machine has none.
Backend& backend(Device device);

/// GPUs that this build can use on this machine; 0 for a build without CUDA.
int visible_gpus();

/// The allocator of a device; one for each device and process.
CachingAllocator& allocator(Device device);

/// Puts `backend` in charge of `device` until the process ends. For devices this library does not bring: a fake one in
/// tests, or a user's own. Throws DeviceError if the device is already in use.
void install_backend(Device device, std::unique_ptr<Backend> backend);

}  // namespace castor
