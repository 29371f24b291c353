// A decoder over bytes: GPT-2's shape by default, with the options that later models changed (rotary positions,
// RMSNorm, SwiGLU, grouped queries, no biases). A program of its own would look the same: nothing here is known to the
// library.
//
// Sources: Radford et al. 2019, "Language models are unsupervised multitask learners"; Touvron et al. 2023,
// arXiv:2302.13971.
#pragma once

#include <string>

#include "autograd/nn/loss.h"
#include "autograd/nn/trainable.h"
#include "autograd/nn/transformer.h"
#include "strategy/config/constraint.h"
#include "strategy/text_generation.h"

namespace castor::samples {

/// Options of the model.
struct GptConfig {
  std::int64_t n_layer = 6;
  std::int64_t n_head = 6;
  std::int64_t n_kv_head = 0;  ///< 0 = n_head
  std::int64_t n_embd = 384;
  std::int64_t n_hidden = 0;  ///< of the feed-forward network; 0 = by its kind
  std::int64_t block_size = 256;
  std::int64_t vocab_size = 256;
  double dropout = 0;
  bool bias = true;
  bool qkv_bias = false;
  std::string norm = "layer";
  std::string mlp = "gelu_tanh";
  std::string position = "learned";
  double rotary_base = 10000;
  bool tie_weights = false;
  double init_std = 0.02;
  bool recompute = false;
  bool recompute_activation = false;
};

/// Names every option once.
template <class V>
void describe(V& v, GptConfig& c) {
  using strategy::at_least, strategy::less_than, strategy::more_than, strategy::one_of;
  v.field("n_layer", c.n_layer, "blocks", at_least(1));
  v.field("n_head", c.n_head, "query heads of each block", at_least(1));
  v.field("n_kv_head", c.n_kv_head, "key and value heads of each block, a divisor of n_head; 0 = n_head", at_least(0));
  v.field("n_embd", c.n_embd, "width, a multiple of n_head", at_least(1));
  v.field("n_hidden", c.n_hidden,
          "hidden width of the feed-forward network; 0 = 4 n_embd (swiglu: 8/3, rounded up to 64)", at_least(0));
  v.field("block_size", c.block_size, "longest context in tokens", at_least(1));
  v.field("vocab_size", c.vocab_size, "tokens; 256 for bytes", at_least(1));
  v.field("dropout", c.dropout, "share dropped of the embedding and of each branch's result", at_least(0),
          less_than(1));
  v.field("bias", c.bias, "biases in linear layers and LayerNorms");
  v.field("qkv_bias", c.qkv_bias, "biases of queries, keys and values, also without bias (Qwen2)");
  v.field("norm", c.norm, "LayerNorm or RMSNorm", one_of({"layer", "rms"}));
  v.field("mlp", c.mlp, "feed-forward network", one_of({"gelu_tanh", "gelu_erf", "relu", "swiglu"}));
  v.field("position", c.position, "learned table, or rotation of queries and keys", one_of({"learned", "rotary"}));
  v.field("rotary_base", c.rotary_base, "base of the rotary frequencies", more_than(0));
  v.field("tie_weights", c.tie_weights, "use the token table as the output matrix");
  v.field("init_std", c.init_std, "standard deviation of the first weights", more_than(0));
  v.field("recompute", c.recompute, "keep only each block's input and run the block again in backward");
  v.field("recompute_activation", c.recompute_activation,
          "keep only the input of the feed-forward network's activation and compute that again in backward");
  v.check(
      "n_embd", [&] { return c.n_embd % c.n_head == 0; }, "must be a multiple of n_head");
  v.check(
      "n_kv_head", [&] { return c.n_kv_head == 0 || c.n_head % c.n_kv_head == 0; }, "must divide n_head");
  v.check(
      "position", [&] { return c.position != "rotary" || c.n_embd / c.n_head % 2 == 0; },
      "rotary needs an even n_embd / n_head");
}

/// The decoder. Parameters: wte, wpe (learned positions), blocks.N.{norm1, attn, norm2, mlp}, norm, head.
class Gpt final : public autograd::TrainableModel, public strategy::TextModel {
 public:
  using Config = GptConfig;
  /// Throws ConfigError for sizes that do not fit.
  explicit Gpt(const GptConfig& config, const autograd::TensorOptions& options = {});

  /// tokens i64|i32 [B, T], T <= block_size -> logits [B, T, vocab_size]. Throws ShapeError for another shape.
  autograd::Variable forward(const Tensor& tokens) override;
  /// {"loss": mean cross-entropy in nats a token}. targets i64|i32 [B, T]; -100 counts for nothing.
  std::map<std::string, autograd::Variable> loss(const autograd::Batch& batch) override;

  std::int64_t context_length() const override { return config_.block_size; }
  const GptConfig& config() const { return config_; }

 private:
  /// What the head takes: tokens [B, T] -> [B, T, n_embd].
  autograd::Variable hidden(const Tensor& tokens);

  GptConfig config_;
  std::unique_ptr<autograd::Embedding> wte_;
  std::unique_ptr<autograd::Embedding> wpe_;
  autograd::Dropout dropout_;
  autograd::ModuleList<autograd::TransformerBlock> blocks_;
  std::shared_ptr<autograd::Norm> norm_;
  std::unique_ptr<autograd::Linear> head_;
  autograd::CrossEntropyLoss criterion_;
};

}  // namespace castor::samples
