// How attention, the feed-forward networks and the block use their ops.
#include "autograd/nn/transformer.h"

#include "autograd/ops/attention.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/gated.h"
#include "autograd/ops/matmul.h"

namespace castor::autograd {
namespace {

/// The config with its defaults filled in. Throws ConfigError for sizes that do not divide.
AttentionConfig completed(AttentionConfig config) {
  if (config.num_kv_heads == 0) config.num_kv_heads = config.num_heads;
  if (config.num_heads < 1 || config.embed_dim % config.num_heads != 0) {
    throw ConfigError(cat("SelfAttention: embed_dim must be a multiple of num_heads, got ", config.embed_dim, " and ",
                          config.num_heads),
                      "num_heads");
  }
  if (config.num_kv_heads < 1 || config.num_heads % config.num_kv_heads != 0) {
    throw ConfigError(
        cat("SelfAttention: num_kv_heads must divide num_heads, got ", config.num_kv_heads, " and ", config.num_heads),
        "num_kv_heads");
  }
  return config;
}

MlpConfig completed(MlpConfig config) {
  if (config.hidden_dim != 0) return config;
  config.hidden_dim = config.kind == MlpKind::swiglu ? (config.embed_dim * 8 / 3 + 63) / 64 * 64 : 4 * config.embed_dim;
  return config;
}

Activation activation_of(MlpKind kind) {
  switch (kind) {
    case MlpKind::gelu_erf:
      return Activation::gelu_erf;
    case MlpKind::gelu_tanh:
      return Activation::gelu_tanh;
    case MlpKind::relu:
      return Activation::relu;
    case MlpKind::swiglu:
      return Activation::silu;
  }
  throw InternalError("activation_of: a kind outside the enumeration");
}

LinearOptions linear_options(bool bias, const std::optional<Init>& weight_init, const TensorOptions& tensor) {
  return {.bias = bias, .weight_init = weight_init, .tensor = tensor};
}

}  // namespace

SelfAttention::SelfAttention(const AttentionConfig& config)
    : config_(completed(config)),
      head_dim_(config_.embed_dim / config_.num_heads),
      qkv_(config_.embed_dim, (config_.num_heads + 2 * config_.num_kv_heads) * head_dim_,
           linear_options(config_.bias || config_.qkv_bias, config_.weight_init, config_.tensor)),
      proj_(config_.embed_dim, config_.embed_dim, linear_options(config_.bias, config_.weight_init, config_.tensor)),
      dropout_(config_.dropout) {
  register_module("qkv", qkv_);
  register_module("proj", proj_);
  register_module("dropout", dropout_);
}

Variable SelfAttention::forward(const Variable& x) {
  const ForwardScope scope(*this);
  PackedAttention how;
  how.heads = config_.num_heads;
  how.key_heads = config_.num_kv_heads;
  how.options.causal = config_.causal;
  if (config_.rotary != nullptr) how.rotary = *config_.rotary;
  return dropout_.forward(proj_.forward(packed_attention(qkv_.forward(x), how)));
}

MlpKind mlp_kind_from_name(const std::string& name) {
  if (name == "gelu_erf" || name == "gelu") return MlpKind::gelu_erf;
  if (name == "gelu_tanh") return MlpKind::gelu_tanh;
  if (name == "relu") return MlpKind::relu;
  if (name == "swiglu") return MlpKind::swiglu;
  throw ConfigError(cat("Mlp: expected gelu_erf, gelu_tanh, relu or swiglu, got '", name, "'"), "mlp");
}

Mlp::Mlp(const MlpConfig& given)
    : kind_(given.kind),
      recomputes_(given.recompute_activation),
      hidden_dim_(completed(given).hidden_dim),
      fc_(given.embed_dim, kind_ == MlpKind::swiglu ? 2 * hidden_dim_ : hidden_dim_,
          linear_options(given.bias, given.weight_init, given.tensor)),
      proj_(hidden_dim_, given.embed_dim, linear_options(given.bias, given.weight_init, given.tensor)),
      dropout_(given.dropout) {
  if (recomputes_ && fc_.is_fp8()) {
    throw ConfigError("Mlp: fp8 keeps the activation's result in 8 bits; recompute whole blocks instead",
                      "recompute_activation");
  }
  register_module("fc", fc_);
  register_module("proj", proj_);
  register_module("dropout", dropout_);
}

Variable Mlp::forward(const Variable& x) {
  const ForwardScope scope(*this);
  const HiddenActivation hidden{activation_of(kind_), kind_ == MlpKind::swiglu};
  const bool is_gated_fp8 = hidden.is_gated && fc_.is_fp8();
  if (is_gated_fp8 || recomputes_) {  // both layers as one node
    const ForwardScope fc_scope(fc_), proj_scope(proj_);
    const LinearParameters fc{fc_.weight(), fc_.bias()}, proj{proj_.weight(), proj_.bias()};
    return dropout_.forward(is_gated_fp8 ? gated_feed_forward_fp8(x, fc, hidden.activation, proj)
                                         : feed_forward(x, fc, hidden, proj));
  }
  const Variable value = hidden.is_gated ? gated(fc_.forward(x), hidden.activation) : fc_.forward(x, hidden.activation);
  return dropout_.forward(proj_.forward(value));
}

NormKind norm_kind_from_name(const std::string& name) {
  if (name == "layer") return NormKind::layer;
  if (name == "rms") return NormKind::rms;
  throw ConfigError(cat("norm: expected layer or rms, got '", name, "'"), "norm");
}

std::shared_ptr<Norm> make_norm(NormKind kind, std::int64_t size, bool bias, const TensorOptions& options) {
  if (kind == NormKind::rms) return std::make_shared<RMSNorm>(size, 1e-6, options);
  return std::make_shared<LayerNorm>(size, 1e-5, bias, options);
}

TransformerBlock::TransformerBlock(const BlockConfig& config)
    : norm1_(make_norm(config.norm, config.attention.embed_dim, config.norm_bias, config.attention.tensor)),
      attn_(config.attention),
      norm2_(make_norm(config.norm, config.attention.embed_dim, config.norm_bias, config.attention.tensor)),
      mlp_(config.mlp) {
  if (config.attention.embed_dim != config.mlp.embed_dim) {
    throw ConfigError(cat("TransformerBlock: embed_dim of attention and mlp must be equal, got ",
                          config.attention.embed_dim, " and ", config.mlp.embed_dim),
                      "mlp.embed_dim");
  }
  register_module("norm1", norm1_);
  register_module("attn", attn_);
  register_module("norm2", norm2_);
  register_module("mlp", mlp_);
}

Variable TransformerBlock::forward(const Variable& x) {
  const ResidualStream after = forward(ResidualStream{x});
  return after.sum + after.branch;
}

ResidualStream TransformerBlock::forward(const ResidualStream& stream) {
  const ForwardScope scope(*this);
  const NormedSum normed = stream.branch.defined() ? norm1_->forward_add(stream.branch, stream.sum)
                                                   : NormedSum{norm1_->forward(stream.sum), stream.sum};
  const NormedSum attended = norm2_->forward_add(attn_.forward(normed.y), normed.sum);
  return {attended.sum, mlp_.forward(attended.y)};
}

}  // namespace castor::autograd
