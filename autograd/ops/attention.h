// Differentiable attention. Only q, k, v, the result and each row's logsumexp are kept; backward computes scores again.
#pragma once

#include "autograd/variable.h"
#include "core/ops/attention.h"
#include "core/ops/rotary.h"

namespace castor::autograd {

/// Attention of q [B,Tq,H,D] over k, v [B,Tk,Hkv,D]; see castor::attention. The mask has no gradient.
Variable attention(const Variable& q, const Variable& k, const Variable& v, const AttentionOptions& options = {});

/// What self-attention on a packed projection needs beyond the numbers.
struct PackedAttention {
  std::int64_t heads = 1;
  std::int64_t key_heads = 0;  ///< 0 = as many as heads
  AttentionOptions options;
  RotaryTable rotary;               ///< turns queries and keys, if defined; see castor::rotary
  std::int64_t first_position = 0;  ///< the rotary position of the first token
};

/// Self-attention of one projection, without copies of its parts in either direction.
///   qkv      [B, T, (H + 2 Hkv) D]: all query heads, then all key heads, then all value heads
///   returns  [B, T, H D]
/// Throws ShapeError if the last axis does not divide into the heads; otherwise as castor::attention.
Variable packed_attention(const Variable& qkv, const PackedAttention& how);

}  // namespace castor::autograd
