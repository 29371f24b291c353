// The table of what cuDNN does faster, the operands it takes, and the workspace it may have.
//
// Delicate: forward and backward may go different ways, since both write and read the same logsumexp. Backward's
// graph is the one whose order of additions is fixed, which stores the slopes of all scores in 16 bits: workspace that
// grows with the square of the length.
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
  bool is_backward;
  std::int64_t dim;
  bool is_causal;
  std::int64_t shortest, longest;  ///< queries
};

constexpr std::int64_t kAnyLength = std::int64_t{1} << 30;
/// What gpu_attention_speed measured on an H200 with cuDNN 9.19. Forward at 256 to 2048 positions takes 0.66 to 0.97 of
/// our own's time, longer ones 1.00 to 1.15. Backward takes 1.02 to 1.50 of it; with heads of 128 at up to 512
/// positions and at 16384 it takes 0.93 to 0.98, too little for workspace that grows with the square of the length.
constexpr Faster kFaster[] = {
    {false, 64, true, 256, 2048},
    {false, 64, false, 256, 2048},
    {false, 128, true, 256, 2048},
    {false, 128, false, 256, 2048},
};
/// Rows of scores, of all heads, from which that holds: fewer do not fill the GPU, and our own take 0.66 to 0.98.
constexpr std::int64_t kLeastRows = std::int64_t{1} << 17;

/// What a newer version may need beyond the sizes below, which are those of 9.19.
constexpr std::size_t kSlack = std::size_t{64} << 10;

std::int64_t up(std::int64_t value, std::int64_t step) { return (value + step - 1) / step * step; }

/// What the graphs are for: 16-bit heads of 64 or 128, no mask, a cut along the diagonal of a square or none.
template <class Args>
bool takes(const Args& args) {
  const std::int64_t dim = args.q.size[3], queries = args.q.size[1], keys = args.k.size[1];
  return (args.q.dtype == DType::bf16 || args.q.dtype == DType::f16) && (dim == 64 || dim == 128) &&
         !args.mask.defined() && args.scale > 0 && queries > 1 && keys > 1 && (!args.causal || queries == keys) &&
         queries < kAnyLength && keys < kAnyLength && cuda::has_whole_strides(args.q) &&
         cuda::has_whole_strides(args.k) && cuda::has_whole_strides(args.v) && cuda::has_whole_strides(args.out);
}

bool operands_fit(const AttentionArgs& args) { return takes(args); }
bool operands_fit(const AttentionBackwardArgs& args) {
  return takes(args) && cuda::has_whole_strides(args.dout) && cuda::has_whole_strides(args.dq) &&
         cuda::has_whole_strides(args.dk) && cuda::has_whole_strides(args.dv);
}

constexpr bool is_backward(const AttentionArgs&) { return false; }
constexpr bool is_backward(const AttentionBackwardArgs&) { return true; }

template <class Args>
bool is_wanted(const Args& args) {
  if (asked_kernels != AttentionKernels::measured) return asked_kernels == AttentionKernels::cudnn;
  const std::int64_t length = args.q.size[1];
  if (args.q.size[0] * args.q.size[2] * length < kLeastRows) return false;
  return std::any_of(std::begin(kFaster), std::end(kFaster), [&](const Faster& line) {
    return line.is_backward == is_backward(args) && line.dim == args.q.size[3] && line.is_causal == args.causal &&
           line.shortest <= length && length <= line.longest;
  });
}

/// The library asks for a step along every axis, also where there is one element only.
CudnnRows rows(const View& x) {
  const auto step = [&](int axis, std::int64_t otherwise) { return x.size[axis] > 1 ? x.stride[axis] : otherwise; };
  const std::int64_t head = step(2, x.size[3]), position = step(1, x.size[2] * head);
  return {step(0, x.size[1] * position), position, head};
}

template <class Args>
CudnnAttentionProblem common_problem(const Args& args) {
  CudnnAttentionProblem problem;
  problem.dtype = args.q.dtype;
  problem.is_backward = is_backward(args);
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

CudnnAttentionProblem problem_of(const AttentionArgs& args) { return common_problem(args); }
CudnnAttentionProblem problem_of(const AttentionBackwardArgs& args) {
  CudnnAttentionProblem problem = common_problem(args);
  problem.dout = rows(args.dout);
  problem.dq = rows(args.dq);
  problem.dk = rows(args.dk);
  problem.dv = rows(args.dv);
  return problem;
}

template <class Args>
const CudnnAttention* plan_of(Device device, const Args& args, std::string* why = nullptr) {
  return find_cudnn_attention(device, problem_of(args), cuda::cudnn_workspace(args), why);
}

template <class Args>
bool does(const Cuda& cuda, const Args& args) {
  if (!has_cudnn() || !is_wanted(args) || !operands_fit(args)) return false;
  if (cuda.device.is_meta()) return true;
  return cuda::is_hopper(cuda.device) && plan_of(cuda.device, args) != nullptr;
}

template <class Args>
std::string plan_text(Device device, const Args& args) {
  if (!operands_fit(args)) return "not for these operands";
  std::string why;
  const CudnnAttention* const plan = plan_of(device, args, &why);
  return plan == nullptr ? why : cudnn_attention_name(*plan);
}

template <class Args>
void launch(const Cuda& cuda, const Args& args, CudnnAttentionOperands operands) {
  operands.q = args.q.data;
  operands.k = args.k.data;
  operands.v = args.v.data;
  operands.out = args.out.data;
  operands.lse = args.lse.data;
  const CudnnAttention* const plan = plan_of(cuda.device, args);
  if (plan == nullptr || cudnn_attention_workspace(*plan) > args.workspace.bytes()) {
    throw InternalError(cat(Args::kName, ": cuDNN was to do this without a plan or a workspace for it"));
  }
  run_cudnn_attention(cuda, *plan, operands, static_cast<float>(args.scale), args.workspace.data);
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

bool cudnn_does(const Cuda& cuda, const AttentionArgs& args) { return does(cuda, args); }
bool cudnn_does(const Cuda& cuda, const AttentionBackwardArgs& args) { return does(cuda, args); }

std::size_t cudnn_workspace(const AttentionArgs&) { return 256 + kSlack; }

/// Sums of dout * out for each row, slopes of scores in whole tiles and, where heads share keys, gradients of keys and
/// values for each query head.
std::size_t cudnn_workspace(const AttentionBackwardArgs& args) {
  const std::int64_t batch = args.q.size[0], queries = args.q.size[1], heads = args.q.size[2], dim = args.q.size[3];
  const std::int64_t keys = args.k.size[1], key_heads = args.k.size[2];
  constexpr std::int64_t kFloat = 4, kHalf = 2;
  const std::int64_t sums = up(batch * heads * queries * kFloat, 256);
  const std::int64_t slopes = batch * heads * up(queries, 64) * up(keys, 128) * kHalf;
  const std::int64_t shared = heads == key_heads ? 0 : 2 * batch * heads * keys * dim * kHalf;
  return static_cast<std::size_t>(sums + slopes + shared) + 256 + kSlack;
}

void attention_cudnn(const Cuda& cuda, const AttentionArgs& args) { launch(cuda, args, {}); }

void attention_cudnn(const Cuda& cuda, const AttentionBackwardArgs& args) {
  CudnnAttentionOperands operands;
  operands.dout = args.dout.data;
  operands.dq = args.dq.data;
  operands.dk = args.dk.data;
  operands.dv = args.dv.data;
  launch(cuda, args, operands);
}

std::string cudnn_plan_text(Device device, const AttentionArgs& args) { return plan_text(device, args); }
std::string cudnn_plan_text(Device device, const AttentionBackwardArgs& args) { return plan_text(device, args); }

}  // namespace cuda
}  // namespace castor
