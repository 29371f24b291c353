// The product of two 8-bit tensors (core/ops/fp8.h): what a linear layer's three products are in fp8.
//
// Numerics: the CPU expands both operands, exactly, and multiplies those. A GPU with 8-bit units (compute capability
// 8.9) multiplies the 8-bit numbers themselves where sizes allow; each term is then the same number, and the result
// differs by the order and precision of its sum: cuBLASLt moves partial sums of the tensor units into f32 as it goes,
// in all three products. (Its fast accumulation, which others use forward, makes a step of 1.5B 1 % faster on an H200,
// and sums of 1024 terms wrong by 3e-3.) Other GPUs and sizes do as the CPU.
// Delicate: which way is taken decides the scratch, and so the plan; it depends on sizes, dtypes and the GPU. A meta
// device stands for a GPU that has the units.
#pragma once

#include "core/device/dispatch.h"
#include "core/ops/fp8.h"

namespace castor {

/// c = a b^T * a_scale[0] * b_scale[0] + bias. a: f8e4m3|f8e5m2 [m, k], b: f8e4m3 [n, k], each dense in memory, by rows
/// or by columns; scales: f32 [2]; bias: [n] dense or absent; c: row-major [m, n]; bias and c of one dtype:
/// f32|bf16|f16.
struct Fp8MatmulArgs {
  static constexpr const char* kName = "fp8_matmul";
  View a, a_scale, b, b_scale, bias, c, workspace;
};
Cost cost(const Fp8MatmulArgs& args);
std::size_t workspace_bytes(const Cpu& cpu, const Fp8MatmulArgs& args);
std::size_t workspace_bytes(const Cuda& cuda, const Fp8MatmulArgs& args);
void run(const Cpu& cpu, const Fp8MatmulArgs& args);
void run(const Cuda& cuda, const Fp8MatmulArgs& args);

/// One operand: values or transposed of an Fp8Tensor, and its scale.
struct Fp8Operand {
  Tensor values, scale;
};

/// a b^T + bias, rounded once to `dtype`.
///   a        f8e4m3|f8e5m2 [m, k], as fp8_quantise gives it: without gaps, by rows or by columns
///   b        f8e4m3 [n, k], as a
///   dtype    of the result and the bias: f32|bf16|f16
///   bias     [n], any stride, or undefined
///   returns  [m, n]
/// Throws ShapeError, DTypeError, DeviceError.
Tensor fp8_matmul(const Fp8Operand& a, const Fp8Operand& b, DType dtype, const Tensor& bias = {});

}  // namespace castor
