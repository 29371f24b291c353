// What a GPU suite does for the tools that watch it, when tests/gpu/run asks by environment variables: it lists its
// kernels and those that its cases launched (CASTOR_KERNEL_LIST=FILE), and gives each tensor memory of its own
// (CASTOR_EXACT_MEMORY=1), so that a tool sees what lies beyond a tensor and what nobody has written yet. There, too,
// cuBLASLt's results are filled with zeros before it writes them: initcheck does not see what the copy engine stores,
// as which these kernels store, and would call every result of theirs unwritten. So is what is lent to other processes,
// who write to it unseen.
//
// Delicate: what is lent is cleared before the handle is made, hence before anybody can write to it. Kernels are seen
// where nvcc's code calls the runtime, which the linker leads through here (--wrap). The three functions belong to CUDA
// 13's toolkit; were they called otherwise by another one, the list would be empty,
// which tests/gpu/run counts as a failure.
#include <cstdlib>
#include <fstream>
#include <map>
#include <mutex>
#include <set>
#include <string>

#include <cublasLt.h>
#include <cuda.h>
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

bool is_exact() { return std::getenv("CASTOR_EXACT_MEMORY") != nullptr; }

template <class T>
T layout_attribute(cublasLtMatrixLayout_t layout, cublasLtMatrixLayoutAttribute_t attribute) {
  T value{};
  cublasLtMatrixLayoutGetAttribute(layout, attribute, &value, sizeof value, nullptr);
  return value;
}

std::size_t bytes_of(std::uint32_t type) {
  if (type == CUDA_R_64F) return 8;
  if (type == CUDA_R_32F) return 4;
  return type == CUDA_R_16F || type == CUDA_R_16BF ? 2 : 1;
}

template <class T>
T operation_attribute(cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute) {
  T value{};
  cublasLtMatmulDescGetAttribute(operation, attribute, &value, sizeof value, nullptr);
  return value;
}

/// Zeros in all matrices of a batch, which lie by columns.
void fill_with_zeros(void* data, cublasLtMatrixLayout_t layout, cudaStream_t stream) {
  const std::size_t element = bytes_of(layout_attribute<std::uint32_t>(layout, CUBLASLT_MATRIX_LAYOUT_TYPE));
  const auto rows = layout_attribute<std::uint64_t>(layout, CUBLASLT_MATRIX_LAYOUT_ROWS),
             columns = layout_attribute<std::uint64_t>(layout, CUBLASLT_MATRIX_LAYOUT_COLS);
  const auto pitch = layout_attribute<std::int64_t>(layout, CUBLASLT_MATRIX_LAYOUT_LD),
             step = layout_attribute<std::int64_t>(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET);
  const auto count = layout_attribute<std::int32_t>(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT);
  for (std::int32_t i = 0; i < count; ++i) {
    cudaMemset2DAsync(static_cast<char*>(data) + static_cast<std::size_t>(i * step) * element,
                      static_cast<std::size_t>(pitch) * element, 0, rows * element, columns, stream);
  }
}

/// Zeros in all of the allocation that begins at `memory`, which are there when this returns.
cudaError_t clear_allocation(void* memory) {
  constexpr unsigned kVersion = 3020;  // since when the call's types are what they are
  void* address = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  cudaGetDriverEntryPointByVersion("cuMemGetAddressRange", &address, kVersion, cudaEnableDefault, &found);
  if (found != cudaDriverEntryPointSuccess) return cudaErrorNotSupported;
  const auto range_of = reinterpret_cast<CUresult (*)(CUdeviceptr*, std::size_t*, CUdeviceptr)>(address);
  std::size_t bytes = 0;
  if (range_of(nullptr, &bytes, reinterpret_cast<CUdeviceptr>(memory)) != CUDA_SUCCESS) return cudaErrorInvalidValue;
  const cudaError_t status = cudaMemset(memory, 0, bytes);
  return status == cudaSuccess ? cudaDeviceSynchronize() : status;
}

/// Gives tensors memory of their own where that is wanted.
class ExactMemoryListener : public castor::test::QuietListener {
 public:
  using QuietListener::QuietListener;
  void test_run_start() override { castor::set_exact_memory(is_exact()); }
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

cublasStatus_t real_matmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, const void* alpha, const void* a,
                           cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout,
                           const void* beta, const void* c, cublasLtMatrixLayout_t c_layout, void* d,
                           cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algorithm, void* workspace,
                           std::size_t workspace_bytes, cudaStream_t stream) asm("__real_cublasLtMatmul");
cublasStatus_t wrap_matmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, const void* alpha, const void* a,
                           cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout,
                           const void* beta, const void* c, cublasLtMatrixLayout_t c_layout, void* d,
                           cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algorithm, void* workspace,
                           std::size_t workspace_bytes, cudaStream_t stream) asm("__wrap_cublasLtMatmul");

cudaError_t real_lend(cudaIpcMemHandle_t* handle, void* memory) asm("__real_cudaIpcGetMemHandle");
cudaError_t wrap_lend(cudaIpcMemHandle_t* handle, void* memory) asm("__wrap_cudaIpcGetMemHandle");

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

cublasStatus_t wrap_matmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, const void* alpha, const void* a,
                           cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout,
                           const void* beta, const void* c, cublasLtMatrixLayout_t c_layout, void* d,
                           cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algorithm, void* workspace,
                           std::size_t workspace_bytes, cudaStream_t stream) {
  if (is_exact()) {
    const bool is_f64 = operation_attribute<std::int32_t>(operation, CUBLASLT_MATMUL_DESC_SCALE_TYPE) == CUDA_R_64F;
    const bool accumulates = is_f64 ? *static_cast<const double*>(beta) != 0 : *static_cast<const float*>(beta) != 0;
    if (!accumulates) fill_with_zeros(d, d_layout, stream);
  }
  return real_matmul(handle, operation, alpha, a, a_layout, b, b_layout, beta, c, c_layout, d, d_layout, algorithm,
                     workspace, workspace_bytes, stream);
}

cudaError_t wrap_lend(cudaIpcMemHandle_t* handle, void* memory) {
  if (is_exact()) {
    const cudaError_t status = clear_allocation(memory);
    if (status != cudaSuccess) return status;
  }
  return real_lend(handle, memory);
}

}  // extern "C"
