// What backward's kernels on tensor cores need of each row of queries: its logsumexp in exponents of 2, and the
// sum of out * dout. Rows without keys and those beyond the last, up to whole blocks, get +infinity, which makes every
// probability 0. Bound by memory: out and dout are read once.
#include "core/ops/attention_cuda_scores.cuh"

namespace castor::cuda {
namespace {

constexpr int kLanes = 4;  // of a row
constexpr int kThreads = static_cast<int>(kStatisticsBlock) * kLanes;

struct RowStatistics {
  HeadRows out, dout;
  const float* lse;
  float *lse_log2, *delta;  ///< [batch and head, rows]
  int queries, heads, blocks, dim;
};

/// This lane's part of the sum over a row of a * b, of which four lanes take 16-byte words in turn.
template <class T>
__device__ float partial_dot(const T* a, const T* b, int dim) {
  float sum = 0;
#pragma unroll 4
  for (int at = static_cast<int>(threadIdx.x % kLanes) * 8; at < dim; at += 8 * kLanes) {
    const uint4 x = *reinterpret_cast<const uint4*>(a + at), y = *reinterpret_cast<const uint4*>(b + at);
    const std::uint32_t xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const auto part = [&](std::uint32_t w, int shift) { return to_float(T{static_cast<std::uint16_t>(w >> shift)}); };
      sum = fmaf(part(xs[i], 0), part(ys[i], 0), sum);
      sum = fmaf(part(xs[i], 16), part(ys[i], 16), sum);
    }
  }
  return sum;
}

template <class T>
__global__ void __launch_bounds__(kThreads) row_statistics(const __grid_constant__ RowStatistics p) {
  const int at = static_cast<int>(blockIdx.x) / p.blocks, batch = at / p.heads, head = at % p.heads;
  const int row = static_cast<int>(blockIdx.x) % p.blocks * static_cast<int>(kStatisticsBlock) +
                  static_cast<int>(threadIdx.x) / kLanes;
  float lse_log2 = kInfinity, delta = 0;
  if (row < p.queries) {
    const float lse = p.lse[static_cast<std::int64_t>(at) * p.queries + row];
    if (lse != -kInfinity) lse_log2 = lse * math::kLog2E;
    delta = partial_dot(p.out.at<T>(batch, row, head), p.dout.at<T>(batch, row, head), p.dim);
  }
  delta += __shfl_xor_sync(0xFFFFFFFFu, delta, 1);
  delta += __shfl_xor_sync(0xFFFFFFFFu, delta, 2);
  if (threadIdx.x % kLanes != 0) return;
  const std::int64_t to = static_cast<std::int64_t>(blockIdx.x) * kStatisticsBlock + threadIdx.x / kLanes;
  p.lse_log2[to] = lse_log2;
  p.delta[to] = delta;
}

}  // namespace

void attention_statistics(const Cuda& cuda, const AttentionBackwardArgs& args) {
  RowStatistics params;
  params.out = HeadRows(args.out);
  params.dout = HeadRows(args.dout);
  params.lse = args.lse.as<float>();
  params.queries = static_cast<int>(args.q.size[1]);
  params.heads = static_cast<int>(args.q.size[2]);
  params.blocks = static_cast<int>(statistics_rows(args.q) / kStatisticsBlock);
  params.dim = static_cast<int>(args.q.size[3]);
  params.lse_log2 = args.workspace.as<float>();
  params.delta = params.lse_log2 + args.q.size[0] * args.q.size[2] * statistics_rows(args.q);
  const auto blocks = static_cast<unsigned>(args.q.size[0] * args.q.size[2] * params.blocks);
  const auto kernel = args.q.dtype == DType::bf16 ? row_statistics<BFloat16> : row_statistics<Half>;
  kernel<<<blocks, kThreads, 0, stream_of(cuda)>>>(params);
  check_cuda(cudaGetLastError(), AttentionBackwardArgs::kName, cuda.device);
}

}  // namespace castor::cuda
