// The table of what cuDNN does faster, the operands it takes, and the workspace it may have.
//
// Delicate: our own backward reads the logsumexp that either side's forward writes.
#include "core/ops/attention_cudnn_cuda.h"

#include <algorithm>

#include "core/device/cuda_cudnn.h"
#include "core/ops/attention_cuda_operands.h"
#include "core/ops/attention_kernels.h"

namespace castor {
namespace {

thread_local AttentionKernels asked_kernels = AttentionKernels::measured;

/// Where cuDNN's kernels are the faster ones. A shape that no line names is done by our own.
struct Faster {
  std::int64_t dim;
  bool is_causal;
  std::int64_t shortest, longest;  ///< queries
};

constexpr std::int64_t kAnyLength = std::int64_t{1} << 30;
/// What gpu_attention_speed measured on an H200 with cuDNN 9.19: 0.66 to 0.97 of our own's time at 256 to 2048
/// positions, 1.00 to 1.15 beyond. Its backward with one order of additions took 1.02 to 1.50 of ours, but for 0.93 to
/// 0.98 with heads of 128 at up to 512 positions and at 16384, and workspace that grows with the square of the length.
constexpr Faster kFaster[] = {
    {64, true, 256, 2048},
    {64, false, 256, 2048},
    {128, true, 256, 2048},
    {128, false, 256, 2048},
};
/// Rows of scores, of all heads, from which that holds: fewer do not fill the GPU, and our own take 0.66 to 0.98.
constexpr std::int64_t kLeastRows = std::int64_t{1} << 17;

/// What a newer version may need beyond what 9.19 does.
constexpr std::size_t kSlack = std::size_t{64} << 10;

/// What the graph is for: 16-bit heads of 64 or 128, no mask, a cut along the diagonal of a square or none.
bool operands_fit(const AttentionArgs& args) {
  const std::int64_t dim = args.q.size[3], queries = args.q.size[1], keys = args.k.size[1];
  return (args.q.dtype == DType::bf16 || args.q.dtype == DType::f16) && (dim == 64 || dim == 128) &&
         !args.mask.defined() && args.scale > 0 && queries > 1 && keys > 1 && (!args.causal || queries == keys) &&
         queries < kAnyLength && keys < kAnyLength && cuda::has_whole_strides(args.q) &&
         cuda::has_whole_strides(args.k) && cuda::has_whole_strides(args.v) && cuda::has_whole_strides(args.out);
}

bool is_wanted(const AttentionArgs& args) {
  if (asked_kernels != AttentionKernels::measured) return asked_kernels == AttentionKernels::cudnn;
  const std::int64_t length = args.q.size[1];
  if (args.q.size[0] * args.q.size[2] * length < kLeastRows) return false;
  return std::any_of(std::begin(kFaster), std::end(kFaster), [&](const Faster& line) {
    return line.dim == args.q.size[3] && line.is_causal == args.causal && line.shortest <= length &&
           length <= line.longest;
  });
}

/// The library asks for a step along every axis, also where there is one element only.
CudnnRows rows(const View& x) {
  const auto step = [&](int axis, std::int64_t otherwise) { return x.size[axis] > 1 ? x.stride[axis] : otherwise; };
  const std::int64_t head = step(2, x.size[3]), position = step(1, x.size[2] * head);
  return {step(0, x.size[1] * position), position, head};
}

CudnnAttentionProblem problem_of(const AttentionArgs& args) {
  CudnnAttentionProblem problem;
  problem.dtype = args.q.dtype;
  problem.is_causal = args.causal;
  problem.batch = args.q.size[0];
  problem.queries = args.q.size[1];
  problem.heads = args.q.size[2];
  problem.dim = args.q.size[3];
  problem.keys = args.k.size[1];
  problem.key_heads = args.k.size[2];
  problem.q = rows(args.q);
  problem.k = rows(args.k);
  problem.v = rows(args.v);
  problem.out = rows(args.out);
  return problem;
}

const CudnnAttention* plan_of(Device device, const AttentionArgs& args, std::string* why = nullptr) {
  return find_cudnn_attention(device, problem_of(args), cuda::cudnn_workspace(), why);
}

}  // namespace

AttentionKernelScope::AttentionKernelScope(AttentionKernels kernels) : outer_(asked_kernels) {
  asked_kernels = kernels;
}
AttentionKernelScope::~AttentionKernelScope() { asked_kernels = outer_; }
AttentionKernels attention_kernels() { return asked_kernels; }

std::string attention_library(const Cuda& cuda) {
  if (!has_cudnn() || !cuda::is_hopper(cuda.device)) return {};
  const std::string version = cudnn_version();
  return version.empty() ? "" : "cudnn " + version;
}

namespace cuda {

bool cudnn_does(const Cuda& cuda, const AttentionArgs& args) {
  if (!has_cudnn() || !is_wanted(args) || !operands_fit(args)) return false;
  if (cuda.device.is_meta()) return true;
  return is_hopper(cuda.device) && plan_of(cuda.device, args) != nullptr;
}

std::size_t cudnn_workspace() { return 256 + kSlack; }

void attention_cudnn(const Cuda& cuda, const AttentionArgs& args) {
  const CudnnAttention* const plan = plan_of(cuda.device, args);
  if (plan == nullptr || cudnn_attention_workspace(*plan) > args.workspace.bytes())
    throw InternalError(cat(AttentionArgs::kName, ": cuDNN was to do this without a plan or a workspace for it"));
  run_cudnn_attention(cuda, *plan, {args.q.data, args.k.data, args.v.data, args.out.data, args.lse.data},
                      static_cast<float>(args.scale), args.workspace.data);
}

std::string cudnn_plan_text(Device device, const AttentionArgs& args) {
  if (!operands_fit(args)) return "not for these operands";
  std::string why;
  const CudnnAttention* const plan = plan_of(device, args, &why);
  return plan == nullptr ? why : cudnn_attention_name(*plan);
}

}  // namespace cuda
}  // namespace castor
