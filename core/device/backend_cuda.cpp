// CUDA streams, events, memory and copies behind the Backend interface. Every call makes its device current first:
// which device is current is a property of the calling thread, and threads come from anywhere.
#include "core/device/backend_cuda.h"

#include <mutex>
#include <vector>

#include "core/base/error.h"
#include "core/base/parallel.h"
#include "core/device/backend_cpu.h"
#include "core/device/cuda_runtime.h"
#include "core/device/cuda_staging.h"
#include "core/device/queue_scope.h"

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

void make_device_current(Device device) { check_cuda(cudaSetDevice(device.index), "use the device", device); }

/// Marks the end of a stream of the current device.
Event record_on(cudaStream_t stream, const std::shared_ptr<EventPool>& pool, Device device) {
  // The pool outlives the backend as long as somebody holds an event.
  Event event(pool->take(device), [pool](void* held) { pool->give_back(static_cast<cudaEvent_t>(held)); });
  check_cuda(cudaEventRecord(static_cast<cudaEvent_t>(event.get()), stream), "record an event", device);
  return event;
}

void wait_on(cudaStream_t stream, const Event& event, Device device) {
  if (!event) return;
  check_cuda(cudaStreamWaitEvent(stream, static_cast<cudaEvent_t>(event.get()), 0), "wait for an event", device);
}

/// Of the highest priority: what it brings is waited for, and the little work it has delays nobody.
class CudaSideQueue final : public SideQueue {
 public:
  CudaSideQueue(Device device, std::shared_ptr<EventPool> pool) : device_(device), pool_(std::move(pool)) {
    make_device_current(device_);
    int lowest = 0, highest = 0;
    check_cuda(cudaDeviceGetStreamPriorityRange(&lowest, &highest), "create a stream", device_);
    check_cuda(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, highest), "create a stream", device_);
  }
  CudaSideQueue(const CudaSideQueue&) = delete;
  CudaSideQueue& operator=(const CudaSideQueue&) = delete;
  ~CudaSideQueue() override {
    if (cudaSetDevice(device_.index) != cudaSuccess) return;
    cudaStreamSynchronize(stream_);
    cudaStreamDestroy(stream_);
  }

  void* stream() override {
    make_device_current(device_);
    return stream_;
  }
  void copy(void* to, const void* from, std::size_t bytes) override {
    make_device_current(device_);
    check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_), "copy", device_);
  }
  Event record() override {
    make_device_current(device_);
    return record_on(stream_, pool_, device_);
  }
  void wait(const Event& event) override {
    make_device_current(device_);
    wait_on(stream_, event, device_);
  }

 private:
  Device device_;
  std::shared_ptr<EventPool> pool_;
  cudaStream_t stream_ = nullptr;
};

/// A CUDA graph.
class CudaRecording final : public Recording {
 public:
  CudaRecording(Device device, cudaStream_t stream, cudaGraphExec_t graph)
      : device_(device), stream_(stream), graph_(graph) {}
  CudaRecording(const CudaRecording&) = delete;
  CudaRecording& operator=(const CudaRecording&) = delete;
  ~CudaRecording() override {
    if (cudaSetDevice(device_.index) == cudaSuccess) cudaGraphExecDestroy(graph_);
  }

  void run() override {
    make_device_current(device_);
    check_cuda(cudaGraphLaunch(graph_, stream_), "run a recording", device_);
  }

 private:
  Device device_;
  cudaStream_t stream_;
  cudaGraphExec_t graph_;
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
    refuse_while_recording("copied from the host");
    make_current();
    if (staging_.copy(to, from, bytes, stream_)) return;
    check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_), "copy from host", device_);
    // Page-locked bytes are read while the caller goes on, and where the GPU reads pageable memory by itself (CUDA's
    // "heterogeneous memory management") so are those: nobody has staged them when the call returns.
    check_cuda(cudaStreamSynchronize(stream_), "copy from host", device_);
  }

  void copy_to_host(void* to, const void* from, std::size_t bytes) override {
    refuse_while_recording("read by the host");
    make_current();
    check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream_), "copy to host", device_);
    check_cuda(cudaStreamSynchronize(stream_), "copy to host", device_);
  }

  void fill_zero(void* data, std::size_t bytes) override {
    make_current();
    check_cuda(cudaMemsetAsync(data, 0, bytes, stream_), "fill with zeros", device_);
  }

  void* stream() override {
    if (SideQueue* const queue = QueueScope::current()) return queue->stream();
    make_current();
    return stream_;
  }

  Event record() override {
    make_current();
    return record_on(stream_, pool_, device_);
  }

  void wait(const Event& event) override {
    make_current();
    wait_on(stream_, event, device_);
  }

  bool has_passed(const Event& event) override {
    if (!event) return true;
    make_current();
    const cudaError_t status = cudaEventQuery(static_cast<cudaEvent_t>(event.get()));
    if (status == cudaErrorNotReady) {
      cudaGetLastError();
      return false;
    }
    check_cuda(status, "ask for an event", device_);
    return true;
  }

  void wait_on_host(const Event& event) override {
    if (!event) return;
    make_current();
    check_cuda(cudaEventSynchronize(static_cast<cudaEvent_t>(event.get())), "wait for an event", device_);
  }

  std::unique_ptr<SideQueue> open_queue() override { return std::make_unique<CudaSideQueue>(device_, pool_); }

  void synchronize() override {
    make_current();
    check_cuda(cudaDeviceSynchronize(), "synchronize", device_);
  }

  // Relaxed: the allocator may take memory meanwhile.
  bool begin_recording() override {
    make_current();
    check_cuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed), "begin to record", device_);
    is_recording_ = true;
    return true;
  }

  std::unique_ptr<Recording> end_recording() override {
    is_recording_ = false;
    make_current();
    cudaGraph_t graph = nullptr;
    check_cuda(cudaStreamEndCapture(stream_, &graph), "end recording", device_);
    cudaGraphExec_t made = nullptr;
    const cudaError_t status = cudaGraphInstantiate(&made, graph, 0);
    cudaGraphDestroy(graph);
    check_cuda(status, "make a recording", device_);
    return std::make_unique<CudaRecording>(device_, stream_, made);
  }

  std::size_t total_bytes() const override { return total_bytes_; }

 private:
  void make_current() const { make_device_current(device_); }
  void refuse_while_recording(const char* what) const {
    if (!is_recording_) return;
    throw DeviceError(cat("device ", device_, ": a tensor is ", what,
                          " while the device's work is recorded, which a recording could not do again"));
  }

  Device device_;
  bool is_recording_ = false;
  std::size_t total_bytes_ = 0;
  cudaStream_t stream_ = nullptr;
  std::shared_ptr<EventPool> pool_ = std::make_shared<EventPool>();
  CudaStaging staging_{device_};
};

/// Host memory that GPUs copy from and to at full speed, beside their computing.
class PageLockedBackend final : public CpuBackend {
 public:
  void* allocate(std::size_t bytes) override {
    void* data = allocate_private(bytes);
    if (data == nullptr) return nullptr;
    // Pages that many threads have touched lock in a fraction of the time that the driver alone would take.
    constexpr std::int64_t kPage = 4096, kGrain = 4096;
    parallel_for(static_cast<std::int64_t>(bytes) / kPage, kGrain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t page = begin; page < end; ++page) static_cast<char*>(data)[page * kPage] = 0;
    });
    if (cudaHostRegister(data, bytes, cudaHostRegisterPortable) != cudaSuccess) {
      cudaGetLastError();
      CpuBackend::deallocate(data, bytes);
      return nullptr;
    }
    return data;
  }
  void deallocate(void* data, std::size_t bytes) override {
    cudaHostUnregister(data);
    CpuBackend::deallocate(data, bytes);
  }
};

}  // namespace

std::unique_ptr<Backend> make_page_locked_backend() { return std::make_unique<PageLockedBackend>(); }

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
