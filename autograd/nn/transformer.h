// The parts of a transformer: attention over a packed projection, the two usual feed-forward networks, and the pre-norm
// block of both.
//
// Delicate: queries, keys and values are one projection and stay one tensor; attention reads strided views of it and
// its gradient is written in place, so the split costs no copy.
//
// Sources: Vaswani et al. 2017, arXiv:1706.03762; Xiong et al. 2020, arXiv:2002.04745 (norm before the branch);
// Ainslie et al. 2023, arXiv:2305.13245 (grouped queries); Su et al. 2021, arXiv:2104.09864 (rotary positions).
#pragma once

#include <memory>
#include <string>

#include "autograd/nn/layers.h"
#include "core/ops/rotary.h"

namespace castor::autograd {

/// What self-attention is made of.
struct AttentionConfig {
  std::int64_t embed_dim = 0;     ///< width of the input; a multiple of num_heads
  std::int64_t num_heads = 1;     ///< query heads
  std::int64_t num_kv_heads = 0;  ///< key and value heads, a divisor of num_heads; 0 = num_heads
  bool causal = false;            ///< position t sees 0 .. t
  bool bias = true;               ///< of both projections
  bool qkv_bias = false;          ///< of the first projection, also without `bias`
  /// Rotates queries and keys by their positions, when set. Modules share one table; it bounds the sequence length.
  std::shared_ptr<const RotaryTable> rotary = {};
  double dropout = 0;  ///< of the result, before it joins the residual stream
  std::optional<Init> weight_init = {};
  TensorOptions tensor = {};
};

/// Self-attention: multi-head, or grouped-query with fewer key heads.
///   qkv   Linear embed_dim -> (num_heads + 2 num_kv_heads) * head size
///   proj  Linear embed_dim -> embed_dim
/// qkv's rows are those of all query heads, then of all key heads, then of all value heads.
class SelfAttention final : public Layer {
 public:
  /// Throws ConfigError for sizes that do not divide.
  explicit SelfAttention(const AttentionConfig& config);
  /// x [B, T, embed_dim] -> the same shape
  Variable forward(const Variable& x) override;

 private:
  AttentionConfig config_;
  std::int64_t head_dim_;
  Linear qkv_;
  Linear proj_;
  Dropout dropout_;
};

/// The feed-forward networks.
enum class MlpKind : std::uint8_t { gelu_erf, gelu_tanh, relu, swiglu };
/// The kind called "gelu_erf" (or "gelu"), "gelu_tanh", "relu" or "swiglu". Throws ConfigError, listing them, for
/// another name.
MlpKind mlp_kind_from_name(const std::string& name);

/// What a feed-forward network is made of.
struct MlpConfig {
  std::int64_t embed_dim = 0;
  std::int64_t hidden_dim = 0;  ///< 0 = 4 embed_dim; for swiglu 8/3 embed_dim rounded up to a multiple of 64
  MlpKind kind = MlpKind::gelu_tanh;
  bool bias = true;
  double dropout = 0;  ///< of the result
  /// Keep the activation's input only and compute the activation again in backward, with the same bits.
  bool recompute_activation = false;
  std::optional<Init> weight_init = {};
  TensorOptions tensor = {};
};

/// proj(act(fc(x))), or for swiglu proj(silu(gate) * up), where fc gives gate and up in one product (first half: gate).
/// Source of swiglu: Shazeer 2020, arXiv:2002.05202.
///   fc    Linear embed_dim -> hidden_dim, or 2 hidden_dim for swiglu
///   proj  Linear hidden_dim -> embed_dim
class Mlp final : public Layer {
 public:
  /// Throws ConfigError for a recomputed activation in fp8.
  explicit Mlp(const MlpConfig& config);
  Variable forward(const Variable& x) override;

 private:
  MlpKind kind_;
  bool recomputes_;
  std::int64_t hidden_dim_;
  Linear fc_;
  Linear proj_;
  Dropout dropout_;
};

/// The norms of a transformer.
enum class NormKind : std::uint8_t { layer, rms };
/// The kind called "layer" or "rms". Throws ConfigError, listing them, for another name.
NormKind norm_kind_from_name(const std::string& name);
/// A LayerNorm or RMSNorm over `size`. eps is each one's default.
std::shared_ptr<Norm> make_norm(NormKind kind, std::int64_t size, bool bias, const TensorOptions& options);

/// What a block is made of; the two parts' embed_dim must be equal.
struct BlockConfig {
  AttentionConfig attention;
  MlpConfig mlp;
  NormKind norm = NormKind::layer;
  bool norm_bias = true;  ///< LayerNorm only
};

/// What flows from block to block: `sum`, to which `branch`, the last part's result, is still to be added (undefined:
/// nothing is). The next norm adds it in its own pass over memory.
struct ResidualStream {
  Variable sum;
  Variable branch = {};
};

/// x + attn(norm1(x)), then the same with mlp and norm2.
class TransformerBlock final : public Layer {
 public:
  explicit TransformerBlock(const BlockConfig& config);
  /// x [B, T, embed_dim] -> the same shape
  Variable forward(const Variable& x) override;
  /// The same with the last addition left to whoever comes next.
  ResidualStream forward(const ResidualStream& stream);

 private:
  std::shared_ptr<Norm> norm1_;
  SelfAttention attn_;
  std::shared_ptr<Norm> norm2_;
  Mlp mlp_;
};

}  // namespace castor::autograd
