// Scaled dot-product attention in blocks: scores are never stored, only each row's logsumexp, so memory is linear in
// the sequence length. Queries, keys and values may be strided views of one packed projection, and backward can write
// its three gradients into strided views of one packed gradient: neither costs a copy.
//
// Delicate: sums over keys run in key order with one fused multiply-add each, in blocks whose size does not depend on
// the instruction set, so scalar width, thread count and the cutting of work never change a bit. Sources: Dao et al.
// 2022, arXiv:2205.14135 (blocks, recomputation); Milakov & Gimelshein 2018, arXiv:1805.02867 (running maximum and
// sum); Ainslie et al. 2023, arXiv:2305.13245 (grouped queries).
#pragma once

#include "core/device/dispatch.h"
#include "core/tensor/tensor.h"

namespace castor {

/// out = softmax(scale * q k^T + mask) v, and the logsumexp of each row of scores.
///   q          [B, Tq, H, D], last stride 1
///   k, v       [B, Tk, Hkv, D], last stride 1; query head h reads key head h / (H / Hkv)
///   mask       absent, bool (true = attend) or f32 (added), expanded to [B, H, Tq, Tk]
///   out        [B, Tq, H, D], last stride 1
///   lse        f32 (f64 for f64) [B, H, Tq] row-major: natural logarithm of the sum of exp(score);
///              -infinity for a row without keys
///   workspace  see workspace_bytes
struct AttentionArgs {
  static constexpr const char* kName = "attention";
  View q, k, v, mask, out, lse, workspace;
  double scale;
  bool causal;  ///< query i sees keys 0 .. i + Tk - Tq
};
Cost cost(const AttentionArgs& args);
void run(const Cpu& cpu, const AttentionArgs& args);
void run(const Cuda& cuda, const AttentionArgs& args);
/// CPU: scratch for each thread that `num_threads()` allows: blocks of scores, and rows converted to f32 where q is not
/// f32 or D is not a multiple of 16; linear in Tk. CUDA: none forward, or what
/// core/ops/attention_cudnn_cuda.h says; backward 8 bytes for each query and head, with queries rounded up to 64, and
/// for 16 bits, heads of 64 or 128 and no mask up to 512 MiB of gradients of scores.
std::size_t workspace_bytes(const Cpu& cpu, const AttentionArgs& args);
std::size_t workspace_bytes(const Cuda& cuda, const AttentionArgs& args);

/// Gradients of the above. `out` and `lse` are forward's; dout is like out; dq, dk, dv are like q, k, v and need last
/// stride 1. Scores are computed again from q, k and lse. Overwrites dq, dk, dv; they must not overlap anything that is
/// read.
struct AttentionBackwardArgs {
  static constexpr const char* kName = "attention_backward";
  View q, k, v, mask, out, lse, dout, dq, dk, dv, workspace;
  double scale;
  bool causal;
};
Cost cost(const AttentionBackwardArgs& args);
void run(const Cpu& cpu, const AttentionBackwardArgs& args);
void run(const Cuda& cuda, const AttentionBackwardArgs& args);
std::size_t workspace_bytes(const Cpu& cpu, const AttentionBackwardArgs& args);
std::size_t workspace_bytes(const Cuda& cuda, const AttentionBackwardArgs& args);

/// How an attention is to be done.
struct AttentionOptions {
  bool causal = false;  ///< aligned at the end: the last query sees every key
  Tensor mask;  ///< optional: bool (true = attend) or f32 (added to the scaled scores); broadcasts to [B, H, Tq, Tk]
  double scale = 0;  ///< 0 = 1 / sqrt(D)
};

/// Attention's result and what its backward needs.
struct AttentionResult {
  Tensor out;  ///< [B, Tq, H, D] row-major, q's dtype
  Tensor lse;  ///< [B, H, Tq] f32, or f64 for f64
};

/// Attention of q [B, Tq, H, D] over k, v [B, Tk, Hkv, D]; f32|bf16|f16|f64 (all alike), sums in f32 (f64 for f64).
/// Any strides; a last stride other than 1 costs a copy. The mask gets no gradient.
/// A row that sees no key (masks; causal with Tq > Tk) gives zeros and takes no part in gradients.
/// Throws ShapeError (sizes that do not fit, H not a multiple of Hkv), DTypeError, DeviceError.
AttentionResult attention(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionOptions& options = {});

/// Gradients of attention's three inputs.
struct AttentionGradients {
  Tensor dq, dk, dv;
};

/// Gradients, in new tensors, or written into `into`'s defined tensors (any strides with last stride 1, e.g. narrow
/// views of one packed gradient). `forward` is what `attention` returned for the same arguments. The same bits in every
/// run.
AttentionGradients attention_backward(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionResult& forward,
                                      const Tensor& dout, const AttentionOptions& options = {},
                                      const AttentionGradients& into = {});

}  // namespace castor
