// The texts of CUDA's errors. The advice is by what the user can do: most codes of a running program mean that a kernel
// went wrong and that this process has lost the device for good.
#include "core/device/cuda_runtime.h"

#include "core/base/error.h"

namespace castor {
namespace {

const char* advice(cudaError_t status) {
  switch (status) {
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorInitializationError:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorSystemNotReady:
      return "see what nvidia-smi says of GPUs and driver (the driver must be as new as the CUDA this was built with), "
             "or use device cpu";
    case cudaErrorDevicesUnavailable:
      return "another process holds the device for itself: see nvidia-smi";
    case cudaErrorMemoryAllocation:
      return "the device's memory is used up: free some, or use a smaller micro-batch";
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
      return "this build has no kernels for this GPU: configure it with its compute capability in -Dgpu_archs";
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorIllegalInstruction:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorHardwareStackError:
    case cudaErrorAssert:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
      return "an earlier kernel failed and this process has lost the device: start it again; under compute-sanitizer "
             "it names the kernel";
    case cudaErrorECCUncorrectable:
    case cudaErrorUnknown:
      return "this process has lost the device: see nvidia-smi -q and the kernel's log for its state, then start again";
    case cudaErrorInvalidValue:
    case cudaErrorInvalidConfiguration:
    case cudaErrorLaunchOutOfResources:
      return "this GPU does not take a launch of this size: use smaller tensors (a smaller micro-batch), and please "
             "report "
             "it with their shapes";
    case cudaErrorStreamCaptureUnsupported:
    case cudaErrorStreamCaptureInvalidated:
    case cudaErrorStreamCaptureUnjoined:
    case cudaErrorStreamCaptureIsolation:
    case cudaErrorStreamCaptureImplicit:
      return "this cannot be part of a recorded step: leave `compile` out";
    default:
      return "start again; if it comes back, see nvidia-smi for the device's state";
  }
}

}  // namespace

void check_cuda(cudaError_t status, const char* what, Device device) {
  if (status == cudaSuccess) [[likely]]
    return;
  cudaGetLastError();
  throw DeviceError(cat(what, " on ", device, ": CUDA says '", cudaGetErrorString(status), "' (",
                        cudaGetErrorName(status), "); ", advice(status)));
}

std::size_t most_shared_bytes(const char* what, Device device) {
  constexpr int kOwnBytes = 1024;
  int bytes = 0;
  check_cuda(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device.index), what, device);
  return static_cast<std::size_t>(bytes - kOwnBytes);
}

}  // namespace castor
