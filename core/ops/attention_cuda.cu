// Attention on CUDA: which kernels do it, and what workspace they need.
#include <algorithm>

#include "core/ops/attention_cuda.cuh"
#include "core/ops/attention_cuda_operands.h"
#include "core/ops/attention_cudnn_cuda.h"
#include "core/ops/attention_kernels.h"

namespace castor {
namespace cuda {
namespace {

/// Rows that the bulk copy engine reads and that 16-byte words can be written to.
bool has_whole_words(const View& x) {
  return reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0 && has_whole_strides(x);
}

template <class Args>
bool inputs_fit(const Args& args) {
  constexpr std::int64_t kMost = std::int64_t{1} << 30;  // positions are 32-bit numbers in the kernels
  const std::int64_t dim = args.q.size[3];
  return (args.q.dtype == DType::bf16 || args.q.dtype == DType::f16) && dim % 8 == 0 && dim <= 128 &&
         !args.mask.defined() && args.scale > 0 && args.k.size[1] > 0 && args.k.size[1] < kMost &&
         args.q.size[1] < kMost && args.q.size[0] * args.q.size[2] < kMost && has_whole_words(args.q) &&
         has_whole_words(args.k) && has_whole_words(args.v) && has_whole_words(args.out);
}

template <class Args>
bool goes_to_tiles(const Cuda& cuda, const Args& args) {
  return (args.q.size[3] == 64 || args.q.size[3] == 128) && attention_kernels() != AttentionKernels::own_warps &&
         is_hopper(cuda.device);
}

}  // namespace

AttentionWay attention_way(const Cuda& cuda, const AttentionArgs& args) {
  if (!inputs_fit(args)) return AttentionWay::rows;
  return goes_to_tiles(cuda, args) ? AttentionWay::tiles : AttentionWay::warps;
}

AttentionWay attention_way(const Cuda& cuda, const AttentionBackwardArgs& args) {
  if (!has_whole_words(args.dout) || !has_whole_words(args.dq) || !has_whole_words(args.dk) ||
      !has_whole_words(args.dv) || !inputs_fit(args))
    return AttentionWay::rows;
  return goes_to_tiles(cuda, args) ? AttentionWay::tiles : AttentionWay::warps;
}

std::size_t statistics_bytes(const AttentionBackwardArgs& args) {
  return static_cast<std::size_t>(args.q.size[0] * args.q.size[2] * statistics_rows(args.q)) * 2 * sizeof(float);
}

SlopeBlocks slope_blocks(const AttentionBackwardArgs& args) { return {args.q.size[1], args.k.size[1], args.causal}; }

std::int64_t kept_heads(const AttentionBackwardArgs& args) {
  const std::int64_t dim = args.q.size[3], keys = args.k.size[1], heads = args.q.size[0] * args.k.size[2];
  const AttentionKernels asked = attention_kernels();
  const bool is_tiled = (args.q.dtype == DType::bf16 || args.q.dtype == DType::f16) && (dim == 64 || dim == 128) &&
                        !args.mask.defined() && keys > 0 && heads > 0;
  if (!is_tiled || asked == AttentionKernels::own_twice || asked == AttentionKernels::own_warps) return 0;
  // Measured on an H200: 0.79 to 0.97 of the time of making them twice. Heads of 64 gain less, from 0.91 to nothing in
  // a step of training at 1024 keys.
  const bool is_faster = keys >= (dim == 128 ? 1024 : 2048);
  if (!is_faster && asked != AttentionKernels::own_kept) return 0;
  return heads_at_a_time(slope_blocks(args), heads, args.q.size[2] / args.k.size[2]);
}

std::size_t kept_bytes(const AttentionBackwardArgs& args) {
  const std::int64_t kept = kept_heads(args);
  if (kept == 0) return 0;
  return static_cast<std::size_t>(kept * args.q.size[2] / args.k.size[2] * slope_blocks(args).count()) *
         SlopeBlocks::kBytes;
}

/// cuDNN takes what the tiled kernels take, addresses included, and is asked first.
bool goes_to_cudnn(const Cuda& cuda, const AttentionArgs& args) {
  return cudnn_does(cuda, args) && attention_way(cuda, args) == AttentionWay::tiles;
}

}  // namespace cuda

std::size_t workspace_bytes(const Cuda& cuda, const AttentionArgs& args) {
  return cuda::cudnn_does(cuda, args) ? cuda::cudnn_workspace() : 0;
}

/// Two numbers a query and the gradients of scores that are kept, enough for either way: addresses are not known yet.
std::size_t workspace_bytes(const Cuda& cuda, const AttentionBackwardArgs& args) {
  const bool keeps = cuda.device.is_meta() || cuda::is_hopper(cuda.device);
  return cuda::statistics_bytes(args) + (keeps ? cuda::kept_bytes(args) : 0);
}

void run(const Cuda& cuda, const AttentionArgs& args) {
  if (cuda::goes_to_cudnn(cuda, args)) return cuda::attention_cudnn(cuda, args);
  switch (cuda::attention_way(cuda, args)) {
    case cuda::AttentionWay::tiles:
      return cuda::attention_tiles(cuda, args);
    case cuda::AttentionWay::warps:
      return cuda::attention_warps(cuda, args);
    case cuda::AttentionWay::rows:
      return cuda::attention_rows(cuda, args);
  }
}

void run(const Cuda& cuda, const AttentionBackwardArgs& args) {
  const cuda::AttentionWay way = cuda::attention_way(cuda, args);
  if (way == cuda::AttentionWay::rows) return cuda::attention_backward_rows(cuda, args);
  cuda::attention_statistics(cuda, args);
  if (way == cuda::AttentionWay::warps) return cuda::attention_backward_warps(cuda, args);
  const std::int64_t heads = args.k.size[0] * args.k.size[2], kept = cuda::kept_heads(args);
  if (kept == 0) {
    cuda::attention_dq_tiles(cuda, args);
    return cuda::attention_dkv_tiles(cuda, args, {0, heads}, nullptr);
  }
  void* const slopes = static_cast<std::byte*>(args.workspace.data) + cuda::statistics_bytes(args);
  for (std::int64_t first = 0; first < heads; first += kept) {
    const cuda::HeadRange range{first, std::min(kept, heads - first)};
    cuda::attention_dkv_tiles(cuda, args, range, slopes);
    cuda::attention_dq_slopes(cuda, args, range, slopes);
  }
}

}  // namespace castor
