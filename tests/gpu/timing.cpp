// Events around the calls, on the backend's own stream.
#include "tests/gpu/timing.h"

#include <algorithm>
#include <vector>

#include <cuda_runtime_api.h>

#include "core/device/backend.h"
#include "core/device/cuda_runtime.h"

namespace castor::test {

double median_ms(const std::function<void()>& work, Repeats repeats) {
  const auto stream = static_cast<cudaStream_t>(backend(kTimedGpu).stream());
  cudaEvent_t begin = nullptr, end = nullptr;
  check_cuda(cudaEventCreate(&begin), "create an event", kTimedGpu);
  check_cuda(cudaEventCreate(&end), "create an event", kTimedGpu);
  std::vector<float> times;
  for (int run = 0; run < repeats.runs + repeats.warm_ups; ++run) {
    check_cuda(cudaEventRecord(begin, stream), "record an event", kTimedGpu);
    for (int call = 0; call < repeats.calls; ++call) work();
    check_cuda(cudaEventRecord(end, stream), "record an event", kTimedGpu);
    check_cuda(cudaEventSynchronize(end), "wait for an event", kTimedGpu);
    float ms = 0;
    check_cuda(cudaEventElapsedTime(&ms, begin, end), "read an event", kTimedGpu);
    if (run >= repeats.warm_ups) times.push_back(ms / static_cast<float>(repeats.calls));
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::sort(times.begin(), times.end());
  return static_cast<double>(times[times.size() / 2]);
}

const char* gpu_name() {
  static cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, kTimedGpu.index), "read the device's properties", kTimedGpu);
  return properties.name;
}

}  // namespace castor::test
