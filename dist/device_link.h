// DeviceLink: bytes between the GPUs of a group, the only thing that differs between GPU transports. Only byte exchange
// is asked of one: what is added, and in which order, stays Castor's (comm_device.h), so a transport changes no bits.
#pragma once

#include <cstddef>
#include <span>

namespace castor::dist {

/// Bytes on this rank's GPU; none where `bytes` is 0.
struct DeviceBytes {
  void* data = nullptr;
  std::size_t bytes = 0;
};

/// Streams of bytes between the GPUs of a group, in the order of a device's queue.
class DeviceLink {
 public:
  virtual ~DeviceLink() = default;
  /// Sends sends[r] to rank r and fills receives[r] from it, for all r but the own rank; enqueued on `stream` (a
  /// cudaStream_t). All members call it with sizes that agree. Throws JobFailed after `abort`, CommError where NCCL and
  /// DeviceError where CUDA refuses.
  virtual void exchange(std::span<const DeviceBytes> sends, std::span<const DeviceBytes> receives, void* stream) = 0;
  /// Ends what is under way, badly; for another thread, when the job has failed. May wait for the device. Never
  /// throws.
  virtual void abort() noexcept = 0;
};

}  // namespace castor::dist
