// Attention's forward pass by cuDNN behind plain sizes and pointers: cuda_cudnn* are the only files that see that
// library, which is opened when it is first asked for. A plan is looked up by everything that picks its code and made
// once for each problem and process; a build without cuDNN links cuda_cudnn_absent.cpp, which has none.
//
// Delicate: the choice of a plan must be a function of the problem, the GPU model and the library's version alone, so
// no timing decides, and an engine that the library calls nondeterministic is never taken, whatever it would gain.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "core/base/dtype.h"
#include "core/device/device.h"

namespace castor {

/// Rows [batch, position, head, dim] of one operand: strides in elements; the last one is 1.
struct CudnnRows {
  std::int64_t batch = 0, position = 0, head = 0;
  friend bool operator==(const CudnnRows&, const CudnnRows&) = default;
};

/// An attention without a mask. Addresses must be multiples of 16 bytes, and strides of 8 elements.
struct CudnnAttentionProblem {
  DType dtype = DType::bf16;  ///< bf16 or f16; sums are f32
  bool is_causal = false;     ///< query i sees keys 0 .. i; as many keys as queries
  std::int64_t batch = 0, queries = 0, keys = 0, heads = 0, key_heads = 0, dim = 0;
  CudnnRows q, k, v, out;
  friend bool operator==(const CudnnAttentionProblem&, const CudnnAttentionProblem&) = default;
};

/// A plan of the library's. Lives as long as the process.
class CudnnAttention;

/// Whether this build has cuDNN; the machine may still lack it.
bool has_cudnn();

/// What runs `problem` on a device, or nullptr: no library, one that is too old, a shape that it refuses or does only
/// in an order that changes from run to run, or more than `most_workspace` bytes of workspace. The reason is logged
/// once, and `why` says it, too. Safe from any thread. Throws DeviceError.
const CudnnAttention* find_cudnn_attention(Device device, const CudnnAttentionProblem& problem,
                                           std::size_t most_workspace, std::string* why = nullptr);

/// Scratch bytes that a plan writes; aligned to 256.
std::size_t cudnn_attention_workspace(const CudnnAttention& plan);

/// "engine 10, knobs 24=3, workspace 64". For tables.
std::string cudnn_attention_name(const CudnnAttention& plan);

/// Addresses on the device; `out` and `lse` (f32, row-major [batch, heads, queries]) are written.
struct CudnnAttentionOperands {
  const void *q = nullptr, *k = nullptr, *v = nullptr;
  void *out = nullptr, *lse = nullptr;
};

/// Launches it on the device's stream, also while that is recorded. Safe from any thread. Throws DeviceError.
void run_cudnn_attention(const Cuda& cuda, const CudnnAttention& plan, const CudnnAttentionOperands& operands,
                         float scale, void* workspace);

/// The version of the library that attention uses, "9.19.0"; empty where there is none. Opens it.
std::string cudnn_version();

}  // namespace castor
