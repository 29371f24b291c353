// The host's side of the tiled kernels: descriptions of tensors for the copy engine, and launch sizes.
#include "core/ops/attention_cuda_tiles.cuh"

namespace castor::cuda {

CUtensorMap tensor_map(const View& x, int rows, const char* op, Device device) {
  void* address = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  // The driver's function by way of the runtime, so that nothing links to the driver.
  check_cuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &address, 12000, cudaEnableDefault, &found), op,
             device);
  if (found != cudaDriverEntryPointSuccess) {
    throw DeviceError(
        cat(op, " on ", device, ": the driver has no cuTensorMapEncodeTiled; use a driver of CUDA 12 or newer"));
  }
  const auto size = [&](int i) { return static_cast<cuuint64_t>(x.size[i]); };
  // Steps along an axis of one element are never taken, but must be multiples of 16 bytes all the same.
  const auto step = [&](int i) {
    return static_cast<cuuint64_t>(x.size[i] > 1 ? x.stride[i] : x.size[3]) * dtype_size(x.dtype);
  };
  const cuuint64_t sizes[4] = {size(3), size(2), size(1), size(0)}, steps[3] = {step(2), step(1), step(0)};
  const cuuint32_t box[4] = {kPanelColumns, 1, static_cast<cuuint32_t>(rows), 1}, strides[4] = {1, 1, 1, 1};
  CUtensorMap map;
  const CUresult status = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(address)(
      &map, x.dtype == DType::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 4, x.data,
      sizes, steps, box, strides, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw InternalError(cat(op, ": the copy engine takes no tensor of sizes ", x.size[0], ",", x.size[1], ",",
                            x.size[2], ",", x.size[3], " and strides ", x.stride[0], ",", x.stride[1], ",", x.stride[2],
                            ": driver status ", static_cast<int>(status)));
  }
  return map;
}

unsigned resident_blocks(int items, const char* op, Device device) {
  int processors = 0;
  check_cuda(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device.index), op, device);
  return static_cast<unsigned>(std::min(items, processors));
}

}  // namespace castor::cuda
