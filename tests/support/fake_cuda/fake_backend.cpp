// Memory and stream of the fake device.
#include "tests/support/fake_cuda/fake_backend.h"

#include <cstring>
#include <memory>

#include "core/base/error.h"
#include "core/device/backend_cpu.h"
#include "core/device/backend_cuda.h"
#include "core/device/cuda_clock.h"
#include "tests/support/fake_cuda/fake_launch.h"

namespace castor {
namespace {

int stream_token = 0;
long launches = 0;

class FakeCudaBackend final : public CpuBackend {
 public:
  void* allocate(std::size_t bytes) override {
    void* data = CpuBackend::allocate(bytes);
    if (data != nullptr)
      std::memset(data, 0xFF, bytes);  // NaN in every float format: reading what was never written shows
    return data;
  }
  void* stream() override { return &stream_token; }
};

}  // namespace

// What backends.cpp asks of CUDA: there is no GPU but the fake one, and that somebody installs.
int cuda_device_count() { return 0; }

std::unique_ptr<QueueClock> make_cuda_clock(Device) { return nullptr; }

std::unique_ptr<Backend> make_page_locked_backend() { return std::make_unique<CpuBackend>(); }

std::unique_ptr<Backend> make_cuda_backend(int ordinal) {
  throw DeviceError(
      cat("device cuda:", ordinal, ": the fake device is ", kFakeCuda, ", and install_fake_cuda makes it"));
}

void install_fake_cuda() { install_backend(kFakeCuda, std::make_unique<FakeCudaBackend>()); }

long fake_cuda_launches() { return launches; }

Cpu fake_launch(const Cuda& cuda) {
  if (!(cuda.device == kFakeCuda) || cuda.stream != &stream_token)
    throw DeviceError("fake cuda: a kernel was launched with another device or stream");
  ++launches;
  return Cpu{kCpu};
}

}  // namespace castor
