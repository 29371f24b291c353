// Small copies from the host's memory that nobody waits for: the bytes are put aside in page-locked memory at once, so
// the caller may change them, and the device fetches them from there when its queue comes to it.
#pragma once

#include <array>
#include <cstddef>
#include <mutex>

#include "core/device/cuda_runtime.h"

namespace castor {

class CudaStaging {
 public:
  explicit CudaStaging(Device device) : device_(device) {}
  ~CudaStaging();
  CudaStaging(const CudaStaging&) = delete;
  CudaStaging& operator=(const CudaStaging&) = delete;

  /// Starts the copy in the stream, whose device is current; false, with nothing done, where `bytes` are too many.
  /// Waits only for a copy of some copies ago. Throws DeviceError. Safe from any thread.
  bool copy(void* to, const void* from, std::size_t bytes, cudaStream_t stream);

 private:
  static constexpr std::size_t kSlots = 32, kSlotBytes = std::size_t{1} << 20;

  Device device_;
  std::mutex mutex_;
  char* memory_ = nullptr;  // made by the first copy
  std::array<cudaEvent_t, kSlots> read_{};
  std::size_t next_ = 0;
};

}  // namespace castor
