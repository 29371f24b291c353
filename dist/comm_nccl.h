// Bytes between the GPUs of a group, through NCCL. Only byte exchange is asked of it: what is added, and in which
// order, stays Castor's (comm_device.h), so NCCL's choice of algorithm changes no bits.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "dist/comm.h"
#include "dist/failure.h"

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
  /// cudaStream_t). All members call it with sizes that agree. Throws JobFailed after `abort`, CommError where NCCL
  /// refuses.
  virtual void exchange(std::span<const DeviceBytes> sends, std::span<const DeviceBytes> receives, void* stream) = 0;
  /// Ends what is under way, badly; for another thread, when the job has failed. May wait for the device. Never
  /// throws.
  virtual void abort() noexcept = 0;
};

/// Connects the GPUs of `host`'s ranks; all of them call it. Throws CommError naming NCCL's reason, and as Comm::run
/// when a rank fails meanwhile.
///   device  this rank's; no two ranks of a group share one
std::unique_ptr<DeviceLink> connect_nccl(Comm& host, Device device, const Health& health);

}  // namespace castor::dist
