// Forward calls and gradients of attention. Delicate: a packed projection's gradient is one tensor whose three parts
// the kernel writes in place, and the rotary gradient turns two of them where they lie. Queries and keys are neighbours
// and turn together.
#include "autograd/ops/attention.h"

#include "autograd/graph.h"
#include "core/ops/cast.h"

namespace castor::autograd {
namespace {

/// The three parts of a packed [B, T, H + 2 Hkv, D], as views.
struct Parts {
  Tensor q, k, v;
};

Parts parts_of(const Tensor& packed, std::int64_t heads, std::int64_t key_heads) {
  return {packed.narrow(2, 0, heads), packed.narrow(2, heads, key_heads),
          packed.narrow(2, heads + key_heads, key_heads)};
}

}  // namespace

Variable attention(const Variable& q, const Variable& k, const Variable& v, const AttentionOptions& options) {
  const AttentionResult result = castor::attention(q.data(), k.data(), v.data(), options);
  const Tensor saved_q = q.data(), saved_k = k.data(), saved_v = v.data();
  return record("attention", result.out, {q, k, v}, [=](BackwardContext& context) -> std::vector<Tensor> {
    AttentionGradients gradients =
        castor::attention_backward(saved_q, saved_k, saved_v, result, context.gradients[0], options);
    return {gradients.dq, gradients.dk, gradients.dv};
  });
}

Variable packed_attention(const Variable& qkv, const PackedAttention& how) {
  constexpr const char* kOp = "packed_attention";
  const std::int64_t heads = how.heads, key_heads = how.key_heads == 0 ? heads : how.key_heads;
  if (qkv.ndim() != 3 || heads < 1 || key_heads < 1 || qkv.size(2) % (heads + 2 * key_heads) != 0) {
    throw ShapeError(
        cat(kOp, ": expected [B,T,(H+2 Hkv) D] for H = ", heads, ", Hkv = ", key_heads, ", got ", qkv.data()));
  }
  const std::int64_t dim = qkv.size(2) / (heads + 2 * key_heads);
  const Shape unpacked{qkv.size(0), qkv.size(1), heads + 2 * key_heads, dim}, shape = qkv.shape();
  const AttentionOptions options = how.options;
  const RotaryTable table = how.rotary;
  const std::int64_t position = how.first_position;

  const Tensor packed = castor::reshape(qkv.data(), unpacked);
  Parts parts = parts_of(packed, heads, key_heads);
  if (table.cos.defined()) {
    const Tensor turned = castor::rotary(packed.narrow(2, 0, heads + key_heads), table, position);
    parts.q = turned.narrow(2, 0, heads);
    parts.k = turned.narrow(2, heads, key_heads);
  }
  const AttentionResult result = castor::attention(parts.q, parts.k, parts.v, options);
  Tensor flat = result.out.reshape({shape[0], shape[1], heads * dim});
  return record(kOp, flat, {qkv}, [=](BackwardContext& context) -> std::vector<Tensor> {
    const Tensor gradient = Tensor::empty(unpacked, parts.q.dtype(), parts.q.device());
    const Parts into = parts_of(gradient, heads, key_heads);
    const Tensor dout = castor::reshape(context.gradients[0], result.out.shape());
    castor::attention_backward(parts.q, parts.k, parts.v, result, dout, options, {into.q, into.k, into.v});
    if (table.cos.defined()) {
      const Tensor turned = gradient.narrow(2, 0, heads + key_heads);
      rotary_into(turned, table, turned, position, true);
    }
    return {gradient.reshape(shape)};
  });
}

}  // namespace castor::autograd
