// Matrix products by cuBLASLt behind plain sizes and pointers: the only file pair that sees that library. A product is
// looked up by everything that picks its code; the algorithm is one of the library's proposals under a fixed workspace,
// picked once for each key and process.
//
// Delicate: the choice must be a function of the problem, the GPU model and the library's version alone, so the key
// holds alignments (at most 16 bytes, all that kernels ask for) and no addresses, and no timing decides. One rounding
// needs care, because some of the library's kernels round a sum to 16 bits before they add c or the bias to it
// (measured; tests/gpu/products_test.cpp would show it): sums that were split may meet in the compute type only, and
// not at all with a bias, and 16-bit results never accumulate.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "core/base/dtype.h"
#include "core/device/device.h"

namespace castor {

/// c = a b + bias, or c += a b, for `batch` pairs of matrices; strides in elements. In a and b one of the two inner
/// strides is 1 (or its size is 1) and the other at least that size; c is row-major. A batch stride of 0 repeats an
/// operand. No size is 0 and `batch` is at most kMostCudaGemmBatch.
struct CudaGemmProblem {
  DType dtype = DType::f32;         ///< of a and b: f32, f16, bf16 or f64; sums are f32 (f64 for f64), never TF32.
                                    ///< Or of a: f8e4m3 or f8e5m2, where b is f8e4m3 and both go along k
  DType result_dtype = DType::f32;  ///< of c and bias: `dtype`, or f32 for f16 and bf16
  bool has_bias = false;            ///< [n]; not together with `accumulates`
  bool adds_fast = false;    ///< for measuring; 8-bit operands: sums stay in the tensor units, which keep some 13 bits
  bool accumulates = false;  ///< c is read, added to and written; results of f32 and f64 only
  int a_alignment = 16, b_alignment = 16, c_alignment = 16;  ///< bytes; c's is also the bias's; see gemm_alignment
  int choice = -1;  ///< which of the library's proposals, in its own order, for measuring; -1 for ours
  std::int64_t batch = 1, m = 0, n = 0, k = 0;
  std::int64_t a_batch = 0, a_row = 0, a_column = 1;
  std::int64_t b_batch = 0, b_row = 0, b_column = 1;
  std::int64_t c_batch = 0, c_row = 0;
  std::int64_t bias_batch = 0;
  friend bool operator==(const CudaGemmProblem&, const CudaGemmProblem&) = default;
};

inline constexpr std::int64_t kMostCudaGemmBatch = 32768;

/// Scratch bytes that every product may use; what NVIDIA names for Hopper.
inline constexpr std::size_t kCudaGemmWorkspace = std::size_t{32} << 20;

/// How far `data` is aligned, in bytes: a power of two, 16 at most.
int gemm_alignment(const void* data);

/// "cuBLASLt 13.0.2": what is loaded.
std::string cuda_gemm_library();

/// Whether the GPU multiplies 8-bit floats. Throws DeviceError.
bool has_cuda_fp8_units(Device device);

/// What a product of 8-bit operands is multiplied by: one f32 each, on the device.
struct CudaGemmScales {
  const void *a = nullptr, *b = nullptr;
};

/// A product with its algorithm. Lives as long as the process.
class CudaGemm;

/// The product for `problem` on a device; nullptr where the library proposes none (or fewer than `choice` + 1). Safe
/// from any thread. Throws DeviceError when the library cannot be used on the device.
const CudaGemm* find_cuda_gemm(Device device, const CudaGemmProblem& problem);

/// What the library chose, in its own numbers: "algorithm 66, tile 482, stages 36, ...". For tables.
std::string cuda_gemm_name(const CudaGemm& gemm);

/// Launches it on the device's stream. `bias` is null unless the problem has one, and so are `scales` unless it is of 8
/// bits; `workspace` has kCudaGemmWorkspace bytes, aligned to 256. Safe from any thread. Throws
/// DeviceError when the launch is refused.
void run_cuda_gemm(const Cuda& cuda, const CudaGemm& gemm, const void* a, const void* b, const void* bias, void* c,
                   void* workspace, const CudaGemmScales& scales = {});

}  // namespace castor
