// A ring of slots, each with the event that says it has been read.
#include "core/device/cuda_staging.h"

#include <cstring>

namespace castor {

CudaStaging::~CudaStaging() {
  if (memory_ == nullptr || cudaSetDevice(device_.index) != cudaSuccess) return;
  for (const cudaEvent_t event : read_) {
    if (event == nullptr) continue;
    cudaEventSynchronize(event);
    cudaEventDestroy(event);
  }
  cudaFreeHost(memory_);
}

bool CudaStaging::copy(void* to, const void* from, std::size_t bytes, cudaStream_t stream) {
  if (bytes > kSlotBytes) return false;
  const std::lock_guard lock(mutex_);
  if (memory_ == nullptr) {
    void* made = nullptr;
    check_cuda(cudaHostAlloc(&made, kSlots * kSlotBytes, cudaHostAllocPortable), "allocate page-locked memory",
               device_);
    memory_ = static_cast<char*>(made);
  }
  const std::size_t slot = next_;
  next_ = (next_ + 1) % kSlots;
  cudaEvent_t& is_read = read_[slot];
  if (is_read == nullptr) {
    check_cuda(cudaEventCreateWithFlags(&is_read, cudaEventDisableTiming), "create an event", device_);
  } else if (cudaEventQuery(is_read) != cudaSuccess) {
    cudaGetLastError();  // "not ready" is no error
    check_cuda(cudaEventSynchronize(is_read), "wait for an event", device_);
  }
  char* const place = memory_ + slot * kSlotBytes;
  std::memcpy(place, from, bytes);
  check_cuda(cudaMemcpyAsync(to, place, bytes, cudaMemcpyHostToDevice, stream), "copy from host", device_);
  check_cuda(cudaEventRecord(is_read, stream), "record an event", device_);
  return true;
}

}  // namespace castor
