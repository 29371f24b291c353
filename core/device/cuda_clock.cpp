// One CUDA event a mark, made when it is set: a trace is short, and making an event takes a microsecond.
#include "core/device/cuda_clock.h"

#include "core/device/backend.h"
#include "core/device/cuda_runtime.h"

namespace castor {
namespace {

class CudaClock final : public QueueClock {
 public:
  explicit CudaClock(Device device) : device_(device) { mark(backend(device).stream()); }
  CudaClock(const CudaClock&) = delete;
  CudaClock& operator=(const CudaClock&) = delete;
  ~CudaClock() override {
    if (cudaSetDevice(device_.index) != cudaSuccess) return;
    for (const cudaEvent_t event : events_) cudaEventDestroy(event);
  }

  std::size_t mark(void* stream) override {
    check_cuda(cudaSetDevice(device_.index), "use the device", device_);
    cudaEvent_t event = nullptr;
    check_cuda(cudaEventCreate(&event), "create an event", device_);
    events_.push_back(event);
    check_cuda(cudaEventRecord(event, static_cast<cudaStream_t>(stream)), "record an event", device_);
    return events_.size() - 1;
  }

  std::vector<double> seconds() override {
    check_cuda(cudaSetDevice(device_.index), "use the device", device_);
    std::vector<double> times;
    times.reserve(events_.size());
    for (const cudaEvent_t event : events_) {
      float milliseconds = 0;
      check_cuda(cudaEventSynchronize(event), "wait for an event", device_);
      check_cuda(cudaEventElapsedTime(&milliseconds, events_.front(), event), "ask for an event's time", device_);
      times.push_back(static_cast<double>(milliseconds) / 1e3);
    }
    return times;
  }

 private:
  Device device_;
  std::vector<cudaEvent_t> events_;
};

}  // namespace

std::unique_ptr<QueueClock> make_cuda_clock(Device device) { return std::make_unique<CudaClock>(device); }

}  // namespace castor
