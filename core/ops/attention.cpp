// Checks, workspace and allocation of attention. Work is counted in visible (query, key) pairs, so a causal attention
// costs half.
#include "core/ops/attention.h"

#include <cmath>

#include "core/ops/attention_kernels.h"
#include "core/ops/cast.h"
#include "core/ops/workspace.h"

namespace castor {
namespace {

double visible_pairs(const View& q, const View& k, bool causal) {
  const double queries = static_cast<double>(q.size[1]), keys = static_cast<double>(k.size[1]);
  double pairs = queries * keys;
  if (causal) {
    const double rows = std::min(queries, keys);
    pairs = rows * keys - rows * (rows - 1) / 2;
  }
  return pairs * static_cast<double>(q.size[0] * q.size[2]);
}

void check_inputs(const char* op, const Tensor& q, const Tensor& k, const Tensor& v) {
  if (q.ndim() != 4 || k.ndim() != 4 || v.ndim() != 4) {
    throw ShapeError(cat(op, ": expected q [B,Tq,H,D] and k, v [B,Tk,Hkv,D], got q ", q, ", k ", k, ", v ", v));
  }
  const bool is_float =
      q.dtype() == DType::f32 || q.dtype() == DType::bf16 || q.dtype() == DType::f16 || q.dtype() == DType::f64;
  if (!is_float || k.dtype() != q.dtype() || v.dtype() != q.dtype()) {
    throw DTypeError(
        cat(op, ": expected q, k and v of one dtype of f32, bf16, f16, f64, got q ", q, ", k ", k, ", v ", v));
  }
  if (!(k.shape() == v.shape())) throw ShapeError(cat(op, ": k and v differ in shape: k is ", k, ", v is ", v));
  if (q.size(0) != k.size(0) || q.size(3) != k.size(3)) {
    throw ShapeError(cat(op, ": q and k must agree in batch and head size, got q ", q, ", k ", k));
  }
  if (q.size(3) == 0) throw ShapeError(cat(op, ": the head size must be at least 1, got q ", q));
  if (q.size(2) != 0 && (k.size(2) == 0 || q.size(2) % k.size(2) != 0)) {
    throw ShapeError(cat(op, ": the number of query heads must be a multiple of the key heads, got q ", q, ", k ", k));
  }
}

/// The mask as a view of [B, H, Tq, Tk]; absent if there is none.
Tensor expanded_mask(const char* op, const Tensor& mask, const Tensor& q, const Tensor& k) {
  if (!mask.defined()) return {};
  if (mask.dtype() != DType::boolean && mask.dtype() != DType::f32) {
    throw DTypeError(cat(op, ": expected a mask of bool (true = attend) or f32 (added to the scores), got ", mask));
  }
  const Shape full{q.size(0), q.size(2), q.size(1), k.size(1)};
  try {
    return mask.expand(full);
  } catch (const ShapeError&) {
    throw ShapeError(cat(op, ": the mask ", mask, " does not broadcast to [B,H,Tq,Tk] = ", full));
  }
}

double scale_of(const AttentionOptions& options, const Tensor& q) {
  return options.scale != 0 ? options.scale : 1.0 / std::sqrt(static_cast<double>(q.size(3)));
}

bool has_unit_rows(const Tensor& x) { return x.strides()[3] == 1 || x.size(3) == 1; }

Tensor with_unit_rows(const Tensor& x) { return has_unit_rows(x) ? x : clone(x); }

Tensor gradient_target(const char* name, const Tensor& wanted, const Tensor& like) {
  if (!wanted.defined()) return Tensor::empty_like(like);
  if (!(wanted.shape() == like.shape()) || wanted.dtype() != like.dtype()) {
    throw ShapeError(cat("attention_backward: ", name, " must be like its input, expected ", like, ", got ", wanted));
  }
  if (!has_unit_rows(wanted)) {
    throw ShapeError(cat("attention_backward: ", name, " needs adjacent elements along its last axis, got strides ",
                         wanted.strides()));
  }
  return wanted;
}

}  // namespace

std::string attention_library(Device device) {
  if constexpr (kHasCuda) {
    if (device.is_cuda()) return attention_library(Cuda{device});
  }
  return {};
}

Cost cost(const AttentionArgs& args) {
  const double pairs = visible_pairs(args.q, args.k, args.causal);
  const double bytes = static_cast<double>(args.q.bytes() + args.k.bytes() + args.v.bytes() + args.mask.bytes() +
                                           args.out.bytes() + args.lse.bytes());
  return {4 * pairs * static_cast<double>(args.q.size[3]), bytes};
}

Cost cost(const AttentionBackwardArgs& args) {
  const double pairs = visible_pairs(args.q, args.k, args.causal);
  const double bytes =
      static_cast<double>(args.q.bytes() + args.k.bytes() + args.v.bytes() + args.mask.bytes() + args.out.bytes() +
                          args.lse.bytes() + args.dout.bytes() + args.dq.bytes() + args.dk.bytes() + args.dv.bytes());
  return {10 * pairs * static_cast<double>(args.q.size[3]), bytes};
}

AttentionResult attention(const Tensor& q_any, const Tensor& k_any, const Tensor& v_any,
                          const AttentionOptions& options) {
  constexpr const char* kOp = AttentionArgs::kName;
  check_inputs(kOp, q_any, k_any, v_any);
  const Device device = common_device(kOp, {&q_any, &k_any, &v_any, &options.mask});
  const Tensor mask = expanded_mask(kOp, options.mask, q_any, k_any);
  const Tensor q = with_unit_rows(q_any), k = with_unit_rows(k_any), v = with_unit_rows(v_any);
  const DType lse_dtype = q.dtype() == DType::f64 ? DType::f64 : DType::f32;
  AttentionResult result{Tensor::empty(q.shape(), q.dtype(), device),
                         Tensor::empty({q.size(0), q.size(2), q.size(1)}, lse_dtype, device)};
  if (result.out.numel() == 0) return result;
  AttentionArgs args{q.view(),          k.view(),          v.view(), view_or_absent(mask),
                     result.out.view(), result.lse.view(), View{},   scale_of(options, q),
                     options.causal};
  const Tensor workspace = workspace_for(device, args);
  args.workspace = view_or_absent(workspace);
  dispatch(device, args);
  return result;
}

AttentionGradients attention_backward(const Tensor& q_any, const Tensor& k_any, const Tensor& v_any,
                                      const AttentionResult& forward, const Tensor& dout_any,
                                      const AttentionOptions& options, const AttentionGradients& into) {
  constexpr const char* kOp = AttentionBackwardArgs::kName;
  check_inputs(kOp, q_any, k_any, v_any);
  const Device device = common_device(kOp, {&q_any, &k_any, &v_any, &forward.out, &forward.lse, &dout_any,
                                            &options.mask, &into.dq, &into.dk, &into.dv});
  if (!(dout_any.shape() == q_any.shape()) || dout_any.dtype() != q_any.dtype() ||
      !(forward.out.shape() == q_any.shape()) ||
      !(forward.lse.shape() == Shape{q_any.size(0), q_any.size(2), q_any.size(1)})) {
    throw ShapeError(cat(kOp, ": out and its gradient must be like q ", q_any, " and lse [B,H,Tq], got out ",
                         forward.out, ", gradient ", dout_any, ", lse ", forward.lse));
  }
  const Tensor mask = expanded_mask(kOp, options.mask, q_any, k_any);
  const Tensor q = with_unit_rows(q_any), k = with_unit_rows(k_any), v = with_unit_rows(v_any);
  const Tensor out = with_unit_rows(forward.out), dout = with_unit_rows(dout_any);
  AttentionGradients result{gradient_target("dq", into.dq, q), gradient_target("dk", into.dk, k),
                            gradient_target("dv", into.dv, v)};
  if (q.numel() == 0) {
    for (const Tensor& gradient : {result.dk, result.dv}) fill(gradient, 0);
    return result;
  }
  AttentionBackwardArgs args{q.view(),         k.view(),           v.view(),    view_or_absent(mask),
                             out.view(),       forward.lse.view(), dout.view(), result.dq.view(),
                             result.dk.view(), result.dv.view(),   View{},      scale_of(options, q),
                             options.causal};
  const Tensor workspace = workspace_for(device, args);
  args.workspace = view_or_absent(workspace);
  dispatch(device, args);
  return result;
}

}  // namespace castor
