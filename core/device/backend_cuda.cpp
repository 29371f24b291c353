// CUDA streams, events, memory and copies behind the Backend interface. Every call makes its device current first:
// which device is current is a property of the calling thread, and threads come from anywhere.
#include "core/device/backend_cuda.h"

#include <mutex>
#include <vector>

#include "core/base/error.h"
#include "core/device/cuda_runtime.h"

namespace castor {
namespace {

/// Events that nobody holds, ready to be recorded again. CUDA lets an event be re-recorded while waits on its earlier
/// record are pending: those keep the point they saw.
class EventPool {
 public:
  EventPool() = default;
  EventPool(const EventPool&) = delete;
  EventPool& operator=(const EventPool&) = delete;
  ~EventPool() {
    for (const cudaEvent_t event : free_) cudaEventDestroy(event);
  }

  /// An event of the current device.
  cudaEvent_t take(Device device) {
    {
      const std::lock_guard lock(mutex_);
      if (!free_.empty()) {
        const cudaEvent_t event = free_.back();
        free_.pop_back();
        return event;
      }
    }
    cudaEvent_t event = nullptr;
    check_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "create an event", device);
    return event;
  }

  void give_back(cudaEvent_t event) {
    const std::lock_guard lock(mutex_);
    free_.push_back(event);
  }

 private:
  std::mutex mutex_;
  std::vector<cudaEvent_t> free_;
};

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(int ordinal) : device_{DeviceType::cuda, static_cast<std::int16_t>(ordinal)} {
    make_current();
    std::size_t free_bytes = 0;
    check_cuda(cudaMemGetInfo(&free_bytes, &total_bytes_), "ask for the memory", device_);
    check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "create a stream", device_);
  }
  CudaBackend(const CudaBackend&) = delete;
  CudaBackend& operator=(const CudaBackend&) = delete;
  ~CudaBackend() override {
    if (cudaSetDevice(device_.index) != cudaSuccess) return;
    cudaStreamSynchronize(stream_);
    cudaStreamDestroy(stream_);
  }

  void* allocate(std::size_t bytes) override {
    make_current();
    void* data = nullptr;
    const cudaError_t status = cudaMalloc(&data, bytes);
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      return nullptr;
    }
    check_cuda(status, "allocate", device_);
    return data;
  }

  void deallocate(void* data, std::size_t) override {
    // Kernels of this stream may still use the bytes. Destructors come here, and a lost device must not end the
    // program.
    if (cudaSetDevice(device_.index) != cudaSuccess) return;
    cudaStreamSynchronize(stream_);
    cudaFree(data);
  }

  void copy_within(void* to, const void* from, std::size_t bytes) override {
    make_current();
    check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_), "copy", device_);
  }

  void copy_from_host(void* to, const void* from, std::size_t bytes) override {
    make_current();
    check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_), "copy from host", device_);
    // Pageable bytes have been staged by now. Pinned ones are read while the caller goes on, and it may change them.
    cudaPointerAttributes attributes{};
    check_cuda(cudaPointerGetAttributes(&attributes, from), "copy from host", device_);
    if (attributes.type != cudaMemoryTypeUnregistered) {
      check_cuda(cudaStreamSynchronize(stream_), "copy from host", device_);
    }
  }

  void copy_to_host(void* to, const void* from, std::size_t bytes) override {
    make_current();
    check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream_), "copy to host", device_);
    check_cuda(cudaStreamSynchronize(stream_), "copy to host", device_);
  }

  void fill_zero(void* data, std::size_t bytes) override {
    make_current();
    check_cuda(cudaMemsetAsync(data, 0, bytes, stream_), "fill with zeros", device_);
  }

  void* stream() override {
    make_current();
    return stream_;
  }

  Event record() override {
    make_current();
    // The pool outlives the backend as long as somebody holds an event.
    Event event(pool_->take(device_), [pool = pool_](void* held) { pool->give_back(static_cast<cudaEvent_t>(held)); });
    check_cuda(cudaEventRecord(static_cast<cudaEvent_t>(event.get()), stream_), "record an event", device_);
    return event;
  }

  void wait(const Event& event) override {
    if (!event) return;
    make_current();
    check_cuda(cudaStreamWaitEvent(stream_, static_cast<cudaEvent_t>(event.get()), 0), "wait for an event", device_);
  }

  void synchronize() override {
    make_current();
    check_cuda(cudaDeviceSynchronize(), "synchronize", device_);
  }

  std::size_t total_bytes() const override { return total_bytes_; }

 private:
  void make_current() const { check_cuda(cudaSetDevice(device_.index), "use the device", device_); }

  Device device_;
  std::size_t total_bytes_ = 0;
  cudaStream_t stream_ = nullptr;
  std::shared_ptr<EventPool> pool_ = std::make_shared<EventPool>();
};

}  // namespace

int cuda_device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;
}

std::unique_ptr<Backend> make_cuda_backend(int ordinal) {
  int count = 0;
  const Device device{DeviceType::cuda, static_cast<std::int16_t>(ordinal)};
  check_cuda(cudaGetDeviceCount(&count), "find GPUs", device);
  if (ordinal < 0 || ordinal >= count) {
    throw DeviceError(cat("device ", device, ": CUDA sees ", count, count == 1 ? " GPU" : " GPUs",
                          " here, numbered from 0; name one of those, or see CUDA_VISIBLE_DEVICES"));
  }
  return std::make_unique<CudaBackend>(ordinal);
}

}  // namespace castor
