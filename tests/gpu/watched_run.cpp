// What a GPU suite does for the tools that watch it, when tests/gpu/run asks by environment variables: it lists its
// kernels and those that its cases launched (CASTOR_KERNEL_LIST=FILE), and gives each tensor memory of its own
// (CASTOR_EXACT_MEMORY=1), so that a tool sees what lies beyond a tensor and what nobody has written yet.
//
// Delicate: kernels are seen where nvcc's code calls the runtime, which the linker leads through here (--wrap). The
// three functions belong to CUDA 13's toolkit; were they called otherwise by another one, the list would be empty,
// which tests/gpu/run counts as a failure.
#include <cstdlib>
#include <fstream>
#include <map>
#include <mutex>
#include <set>
#include <string>

#include <cuda_runtime_api.h>
#include <doctest/doctest.h>

#include "core/device/exact_memory.h"
#include "tests/support/quiet_listener.h"

namespace {

/// The kernels of this program, by the functions that stand for them on the host.
struct Kernels {
  std::mutex mutex;
  std::map<const void*, std::string> names;
  std::map<cudaKernel_t, const void*> functions;
  std::set<const void*> launched;

  ~Kernels() {
    const char* const path = std::getenv("CASTOR_KERNEL_LIST");
    if (path == nullptr) return;
    std::string text;
    for (const auto& [function, name] : names)
      text += std::string(launched.contains(function) ? "launched " : "there ") + name + "\n";
    std::ofstream(path, std::ios::app) << text << std::flush;
  }
};

Kernels& kernels() {
  static Kernels instance;
  return instance;
}

/// Gives tensors memory of their own where that is wanted.
class ExactMemoryListener : public castor::test::QuietListener {
 public:
  using QuietListener::QuietListener;
  void test_run_start() override { castor::set_exact_memory(std::getenv("CASTOR_EXACT_MEMORY") != nullptr); }
};

}  // namespace

REGISTER_LISTENER("exact_memory", 1, ExactMemoryListener);

// What the linker calls the runtime's functions (real) and those that stand in their place (wrap).
extern "C" {

void real_register(void** module, const char* function, char* device_function, const char* name, int threads,
                   uint3* thread, uint3* block, dim3* block_size, dim3* grid_size,
                   int* warp_size) asm("__real___cudaRegisterFunction");
cudaError_t real_get(cudaKernel_t* kernel, const void* function) asm("__real___cudaGetKernel");
cudaError_t real_launch(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, std::size_t shared_bytes,
                        cudaStream_t stream) asm("__real___cudaLaunchKernel");

void wrap_register(void** module, const char* function, char* device_function, const char* name, int threads,
                   uint3* thread, uint3* block, dim3* block_size, dim3* grid_size,
                   int* warp_size) asm("__wrap___cudaRegisterFunction");
cudaError_t wrap_get(cudaKernel_t* kernel, const void* function) asm("__wrap___cudaGetKernel");
cudaError_t wrap_launch(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, std::size_t shared_bytes,
                        cudaStream_t stream) asm("__wrap___cudaLaunchKernel");

void wrap_register(void** module, const char* function, char* device_function, const char* name, int threads,
                   uint3* thread, uint3* block, dim3* block_size, dim3* grid_size, int* warp_size) {
  {
    const std::lock_guard lock(kernels().mutex);
    kernels().names[function] = name;
  }
  real_register(module, function, device_function, name, threads, thread, block, block_size, grid_size, warp_size);
}

cudaError_t wrap_get(cudaKernel_t* kernel, const void* function) {
  const cudaError_t status = real_get(kernel, function);
  const std::lock_guard lock(kernels().mutex);
  if (status == cudaSuccess) kernels().functions[*kernel] = function;
  return status;
}

cudaError_t wrap_launch(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, std::size_t shared_bytes,
                        cudaStream_t stream) {
  const cudaError_t status = real_launch(kernel, grid, block, arguments, shared_bytes, stream);
  const std::lock_guard lock(kernels().mutex);
  if (status == cudaSuccess) {
    if (const auto found = kernels().functions.find(kernel); found != kernels().functions.end())
      kernels().launched.insert(found->second);
  }
  return status;
}

}  // extern "C"
