// Attention on the CPU: f32, bf16 and f16 go to the blocked kernels (attention_kernel.h), in the copy for the widest
// instruction set; f64, which serves as a reference, goes to plain loops a row at a time.
//
// Delicate: a thread takes whole (batch, head) tasks and any slot of scratch, so threads do not change bits; the slots
// are counted by num_threads() when the contract asks for workspace.
#include <atomic>
#include <vector>

#include "core/base/cpu_isa.h"
#include "core/base/parallel.h"
#include "core/ops/attention.h"
#include "core/ops/attention_kernel.h"

namespace castor {
namespace {

AttentionRows rows_of(const View& view) {
  if (!view.defined()) return {};
  return {view.data, view.stride[0], view.stride[1], view.stride[2]};
}

template <class Args>
AttentionProblem forward_problem(const Args& args) {
  AttentionProblem problem{};
  problem.dtype = args.q.dtype;
  problem.queries = args.q.size[1];
  problem.keys = args.k.size[1];
  problem.heads = args.q.size[2];
  problem.key_heads = args.k.size[2];
  problem.dim = args.q.size[3];
  problem.scale = static_cast<float>(args.scale);
  problem.is_causal = args.causal;
  problem.q = rows_of(args.q);
  problem.k = rows_of(args.k);
  problem.v = rows_of(args.v);
  problem.out = rows_of(args.out);
  problem.lse = args.lse.template as<float>();
  if (args.mask.defined()) {
    problem.mask = args.mask.data;
    problem.mask_is_bool = args.mask.dtype == DType::boolean;
    for (int i = 0; i < 4; ++i) problem.mask_stride[i] = args.mask.stride[i];
  }
  return problem;
}

/// Floats of scratch that a thread needs, a multiple of 16.
std::int64_t scratch_floats(const View& q, const View& k, bool backward) {
  const std::int64_t dim = q.size[3], ld = padded_dim(dim);
  const bool is_direct = q.dtype == DType::f32 && dim % 16 == 0;
  const std::int64_t key_rows = is_direct ? 0 : k.size[1] * ld;
  const std::int64_t query_rows = kQueries * ld, block = kKeys * kQueries;
  return backward ? 2 * kQueries + 5 * query_rows + 2 * block + 4 * key_rows
                  : 3 * kQueries + 3 * query_rows + block + 2 * key_rows;
}

std::size_t scratch_bytes(const View& q, const View& k, std::int64_t tasks, bool backward) {
  if (q.dtype == DType::f64) return 0;
  const std::int64_t slots = std::min<std::int64_t>(num_threads(), tasks);
  return static_cast<std::size_t>(slots * scratch_floats(q, k, backward)) * sizeof(float);
}

/// Gives each range of tasks a slot of the workspace, of `stride` floats.
template <class Body>
void for_tasks(std::int64_t count, const View& workspace, std::int64_t stride, Body body) {
  const std::int64_t slots = workspace.size[0] / (stride * static_cast<std::int64_t>(sizeof(float)));
  std::atomic<std::int64_t> next{0};
  parallel_for(count, 1, [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t slot = next.fetch_add(1, std::memory_order_relaxed);
    if (slot >= slots) throw InternalError("attention: more threads than slots of workspace");
    body(begin, end, workspace.as<float>() + slot * stride);
  });
}

/// Where a row's score with key j is added to, or masked; f64 path.
struct MaskRow {
  const View& mask;
  std::int64_t start;
  double apply(double score, std::int64_t j) const {
    if (!mask.defined()) return score;
    const std::int64_t at = start + j * mask.stride[3];
    if (mask.dtype == DType::boolean) return mask.as<bool>()[at] ? score : -HUGE_VAL;
    return score + static_cast<double>(mask.as<float>()[at]);
  }
};

double dot(const double* a, const double* b, std::int64_t n) {
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum = math::fma(a[i], b[i], sum);
  return sum;
}

void add_scaled(double factor, const double* x, double* y, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) y[i] = math::fma(factor, x[i], y[i]);
}

const double* row_at(const View& view, std::int64_t batch, std::int64_t position, std::int64_t head) {
  return view.as<double>() + batch * view.stride[0] + position * view.stride[1] + head * view.stride[2];
}

double* mutable_row_at(const View& view, std::int64_t batch, std::int64_t position, std::int64_t head) {
  return const_cast<double*>(row_at(view, batch, position, head));
}

template <class Args>
std::int64_t visible_keys(const Args& args, std::int64_t query) {
  const std::int64_t keys = args.k.size[1];
  if (!args.causal) return keys;
  return std::clamp<std::int64_t>(query + keys - args.q.size[1] + 1, 0, keys);
}

/// Scores of one row in `scores`.
template <class Args>
void score_row(const Args& args, std::int64_t batch, std::int64_t query, std::int64_t head, std::int64_t count,
               double* scores) {
  const std::int64_t key_head = head / (args.q.size[2] / args.k.size[2]);
  const double* q = row_at(args.q, batch, query, head);
  const std::int64_t start =
      args.mask.defined() ? batch * args.mask.stride[0] + head * args.mask.stride[1] + query * args.mask.stride[2] : 0;
  const MaskRow mask{args.mask, start};
  for (std::int64_t j = 0; j < count; ++j) {
    scores[j] = mask.apply(args.scale * dot(q, row_at(args.k, batch, j, key_head), args.q.size[3]), j);
  }
}

void forward_f64(const AttentionArgs& args) {
  const std::int64_t heads = args.q.size[2], queries = args.q.size[1], dim = args.q.size[3];
  parallel_for(args.q.size[0] * heads, 1, [&](std::int64_t begin, std::int64_t end) {
    std::vector<double> scores(static_cast<std::size_t>(args.k.size[1]));
    for (std::int64_t task = begin; task < end; ++task) {
      const std::int64_t batch = task / heads, head = task % heads, key_head = head / (heads / args.k.size[2]);
      for (std::int64_t query = 0; query < queries; ++query) {
        const std::int64_t count = visible_keys(args, query);
        score_row(args, batch, query, head, count, scores.data());
        double high = -HUGE_VAL, sum = 0;
        for (std::int64_t j = 0; j < count; ++j) high = std::max(high, scores[static_cast<std::size_t>(j)]);
        double* out = mutable_row_at(args.out, batch, query, head);
        std::fill(out, out + dim, 0.0);
        for (std::int64_t j = 0; j < count && high != -HUGE_VAL; ++j) {
          const double weight = std::exp(scores[static_cast<std::size_t>(j)] - high);
          sum += weight;
          add_scaled(weight, row_at(args.v, batch, j, key_head), out, dim);
        }
        for (std::int64_t d = 0; d < dim && sum != 0; ++d) out[d] /= sum;
        args.lse.as<double>()[task * queries + query] = sum == 0 ? -HUGE_VAL : high + std::log(sum);
      }
    }
  });
}

void backward_f64(const AttentionBackwardArgs& args) {
  const std::int64_t heads = args.q.size[2], key_heads = args.k.size[2], group = heads / key_heads;
  const std::int64_t queries = args.q.size[1], keys = args.k.size[1], dim = args.q.size[3];
  parallel_for(args.q.size[0] * key_heads, 1, [&](std::int64_t begin, std::int64_t end) {
    std::vector<double> scores(static_cast<std::size_t>(keys));
    for (std::int64_t task = begin; task < end; ++task) {
      const std::int64_t batch = task / key_heads, key_head = task % key_heads;
      for (std::int64_t j = 0; j < keys; ++j) {
        std::fill_n(mutable_row_at(args.dk, batch, j, key_head), dim, 0.0);
        std::fill_n(mutable_row_at(args.dv, batch, j, key_head), dim, 0.0);
      }
      for (std::int64_t head = key_head * group; head < (key_head + 1) * group; ++head) {
        for (std::int64_t query = 0; query < queries; ++query) {
          const std::int64_t count = visible_keys(args, query);
          score_row(args, batch, query, head, count, scores.data());
          const double lse = args.lse.as<double>()[(batch * heads + head) * queries + query];
          const double* q = row_at(args.q, batch, query, head);
          const double* dout = row_at(args.dout, batch, query, head);
          const double delta = dot(row_at(args.out, batch, query, head), dout, dim);
          double* dq = mutable_row_at(args.dq, batch, query, head);
          std::fill_n(dq, dim, 0.0);
          for (std::int64_t j = 0; j < count && lse != -HUGE_VAL; ++j) {
            const double p = std::exp(scores[static_cast<std::size_t>(j)] - lse);
            const double ds = args.scale * p * (dot(dout, row_at(args.v, batch, j, key_head), dim) - delta);
            add_scaled(p, dout, mutable_row_at(args.dv, batch, j, key_head), dim);
            add_scaled(ds, q, mutable_row_at(args.dk, batch, j, key_head), dim);
            add_scaled(ds, row_at(args.k, batch, j, key_head), dq, dim);
          }
        }
      }
    }
  });
}

}  // namespace

std::size_t workspace_bytes(const Cpu&, const AttentionArgs& args) {
  return scratch_bytes(args.q, args.k, args.q.size[0] * args.q.size[2], false);
}

std::size_t workspace_bytes(const Cpu&, const AttentionBackwardArgs& args) {
  return scratch_bytes(args.q, args.k, args.q.size[0] * args.k.size[2], true);
}

void run(const Cpu&, const AttentionArgs& args) {
  if (args.q.dtype == DType::f64) return forward_f64(args);
  const AttentionProblem problem = forward_problem(args);
  const auto kernel = cpu_isa() == CpuIsa::avx512 ? attention_forward_avx512 : attention_forward<8>;
  for_tasks(args.q.size[0] * problem.heads, args.workspace, scratch_floats(args.q, args.k, false),
            [&](std::int64_t begin, std::int64_t end, float* scratch) { kernel(problem, begin, end, scratch); });
}

void run(const Cpu&, const AttentionBackwardArgs& args) {
  if (args.q.dtype == DType::f64) return backward_f64(args);
  AttentionProblem problem = forward_problem(args);
  problem.dout = rows_of(args.dout);
  problem.dq = rows_of(args.dq);
  problem.dk = rows_of(args.dk);
  problem.dv = rows_of(args.dv);
  const auto kernel = cpu_isa() == CpuIsa::avx512 ? attention_backward_avx512 : attention_backward<8>;
  for_tasks(args.q.size[0] * problem.key_heads, args.workspace, scratch_floats(args.q, args.k, true),
            [&](std::int64_t begin, std::int64_t end, float* scratch) { kernel(problem, begin, end, scratch); });
}

}  // namespace castor
