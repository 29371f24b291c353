// What the blocked attention kernels take: plain addresses and strides, so that the copies of the kernel for different
// instruction sets share no inline code. attention_cpu.cpp fills it and picks the copy.
#pragma once

#include <cstdint>

#include "core/base/dtype.h"

namespace castor {

/// Rows of D numbers of one dtype, indexed by (batch, position, head); strides in elements, the D numbers adjacent.
struct AttentionRows {
  void* data;
  std::int64_t batch, position, head;
};

/// One attention on f32, bf16 or f16; forward leaves the gradients' members empty.
struct AttentionProblem {
  DType dtype;
  std::int64_t queries, keys, heads, key_heads, dim;
  float scale;
  bool is_causal;
  AttentionRows q, k, v, out, dout, dq, dk, dv;
  float* lse;        ///< [batch, heads, queries]
  const void* mask;  ///< nullptr, or indexed by (batch, head, query, key)
  bool mask_is_bool;
  std::int64_t mask_stride[4];
};

/// Forward of tasks [begin, end), task = batch * heads + head, with AVX-512;
/// scratch as attention_cpu.cpp counts it.
void attention_forward_avx512(const AttentionProblem& problem, std::int64_t begin, std::int64_t end, float* scratch);

/// Backward of tasks [begin, end), task = batch * key_heads + key head, with AVX-512.
void attention_backward_avx512(const AttentionProblem& problem, std::int64_t begin, std::int64_t end, float* scratch);

}  // namespace castor
