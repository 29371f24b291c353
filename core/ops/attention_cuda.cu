// Attention on CUDA: which kernels do it, and what workspace they need.
#include <algorithm>

#include "core/ops/attention_cuda.cuh"
#include "core/ops/attention_cuda_operands.h"
#include "core/ops/attention_cudnn_cuda.h"

namespace castor {
namespace cuda {
namespace {

/// Rows that the bulk copy engine reads and that 16-byte words can be written to.
bool has_whole_words(const View& x) {
  return reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0 && has_whole_strides(x);
}

template <class Args>
bool inputs_fit(const Cuda& cuda, const Args& args) {
  constexpr std::int64_t kMost = std::int64_t{1} << 30;  // positions are 32-bit numbers in the kernels
  const std::int64_t dim = args.q.size[3];
  return (args.q.dtype == DType::bf16 || args.q.dtype == DType::f16) && (dim == 64 || dim == 128) &&
         !args.mask.defined() && args.scale > 0 && args.k.size[1] > 0 && args.k.size[1] < kMost &&
         args.q.size[1] < kMost && args.q.size[0] * args.q.size[2] < kMost && has_whole_words(args.q) &&
         has_whole_words(args.k) && has_whole_words(args.v) && has_whole_words(args.out) && is_hopper(cuda.device);
}

}  // namespace

bool tiles_fit(const Cuda& cuda, const AttentionArgs& args) { return inputs_fit(cuda, args); }

bool tiles_fit(const Cuda& cuda, const AttentionBackwardArgs& args) {
  return has_whole_words(args.dout) && has_whole_words(args.dq) && has_whole_words(args.dk) &&
         has_whole_words(args.dv) && inputs_fit(cuda, args);
}

/// cuDNN takes what the tiled kernels take, addresses included, and is asked first.
template <class Args>
bool goes_to_cudnn(const Cuda& cuda, const Args& args) {
  return cudnn_does(cuda, args) && tiles_fit(cuda, args);
}

}  // namespace cuda

std::size_t workspace_bytes(const Cuda& cuda, const AttentionArgs& args) {
  return cuda::cudnn_does(cuda, args) ? cuda::cudnn_workspace(args) : 0;
}

/// Two numbers a query, enough for either way of our own, or what cuDNN needs, which is more: addresses are not known
/// yet.
std::size_t workspace_bytes(const Cuda& cuda, const AttentionBackwardArgs& args) {
  const std::size_t own =
      static_cast<std::size_t>(args.q.size[0] * args.q.size[2] * cuda::statistics_rows(args.q)) * 2 * sizeof(float);
  return cuda::cudnn_does(cuda, args) ? std::max(own, cuda::cudnn_workspace(args)) : own;
}

void run(const Cuda& cuda, const AttentionArgs& args) {
  if (cuda::goes_to_cudnn(cuda, args)) return cuda::attention_cudnn(cuda, args);
  cuda::tiles_fit(cuda, args) ? cuda::attention_tiles(cuda, args) : cuda::attention_rows(cuda, args);
}

void run(const Cuda& cuda, const AttentionBackwardArgs& args) {
  if (cuda::goes_to_cudnn(cuda, args)) return cuda::attention_cudnn(cuda, args);
  if (!cuda::tiles_fit(cuda, args)) return cuda::attention_backward_rows(cuda, args);
  cuda::attention_dq_tiles(cuda, args);
  cuda::attention_dkv_tiles(cuda, args);
}

}  // namespace castor
