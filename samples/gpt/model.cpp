// How the decoder is put together. Delicate: with tie_weights the output matrix is the token table itself, registered
// under a second name, so that checkpoints know the alias and the optimizer steps it once.
#include "samples/gpt/model.h"

#include "autograd/ops/index.h"
#include "autograd/recompute.h"

namespace castor::samples {

using namespace autograd;

namespace {

BlockConfig block_config(const GptConfig& config, const TensorOptions& options) {
  const Init init = Init::normal(0, config.init_std);
  BlockConfig block;
  block.attention.embed_dim = config.n_embd;
  block.attention.num_heads = config.n_head;
  block.attention.num_kv_heads = config.n_kv_head;
  block.attention.causal = true;
  block.attention.bias = config.bias;
  block.attention.qkv_bias = config.qkv_bias;
  block.attention.dropout = config.dropout;
  block.attention.weight_init = init;
  block.attention.tensor = options;
  if (config.position == "rotary") {
    const CategoryScope category(Category::buffers);
    block.attention.rotary = std::make_shared<const RotaryTable>(
        make_rotary_table(config.block_size, config.n_embd / config.n_head, config.rotary_base, options.device));
  }
  block.mlp.embed_dim = config.n_embd;
  block.mlp.hidden_dim = config.n_hidden;
  block.mlp.kind = mlp_kind_from_name(config.mlp);
  block.mlp.bias = config.bias;
  block.mlp.dropout = config.dropout;
  block.mlp.recompute_activation = config.recompute_activation;
  block.mlp.weight_init = init;
  block.mlp.tensor = options;
  block.norm = norm_kind_from_name(config.norm);
  block.norm_bias = config.bias;
  return block;
}

}  // namespace

Gpt::Gpt(const GptConfig& config, const TensorOptions& options) : config_(config), dropout_(config.dropout) {
  if (config.position != "learned" && config.position != "rotary") {
    throw ConfigError(cat("Gpt: position must be learned or rotary, got '", config.position, "'"), "position");
  }
  const Init init = Init::normal(0, config.init_std);
  wte_ = std::make_unique<Embedding>(config.vocab_size, config.n_embd, init, options);
  register_module("wte", *wte_);
  if (config.position == "learned") {
    wpe_ = std::make_unique<Embedding>(config.block_size, config.n_embd, init, options);
    register_module("wpe", *wpe_);
  }
  register_module("dropout", dropout_);
  const BlockConfig block = block_config(config, options);
  for (std::int64_t i = 0; i < config.n_layer; ++i) blocks_.emplace(block);
  register_module("blocks", blocks_);
  norm_ = make_norm(block.norm, config.n_embd, config.bias, options);
  register_module("norm", norm_);
  TensorOptions of_head = options;
  of_head.has_fp8_products =
      false;  // 8-bit logits cost accuracy; tied weights are the embedding's, which stays as it is
  const LinearOptions head{.bias = false, .weight_init = init, .tensor = of_head};
  head_ = config.tie_weights ? std::make_unique<Linear>(wte_->weight())
                             : std::make_unique<Linear>(config.n_embd, config.vocab_size, head);
  register_module("head", *head_);
  register_module("criterion", criterion_);
}

Variable Gpt::hidden(const Tensor& tokens) {
  if (tokens.ndim() != 2 || tokens.size(1) > config_.block_size) {
    throw ShapeError(cat("Gpt: expected tokens [B, T] with T <= block_size ", config_.block_size, ", got ", tokens));
  }
  Variable x = wte_->forward(tokens);
  if (wpe_ != nullptr) x = x + wpe_->forward_range(0, tokens.size(1));
  ResidualStream stream{dropout_.forward(x)};
  x = {};
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    TransformerBlock& block = blocks_[i];
    // A recomputed block keeps its one input.
    stream = config_.recompute
                 ? ResidualStream{recompute([&block](const Variable& in) { return block.forward(in); }, stream.sum)}
                 : block.forward(stream);
  }
  return stream.branch.defined() ? norm_->forward_add(stream.branch, stream.sum).y : norm_->forward(stream.sum);
}

Variable Gpt::forward(const Tensor& tokens) {
  const ForwardScope scope(*this);
  return head_->forward(hidden(tokens));
}

std::map<std::string, Variable> Gpt::loss(const Batch& batch) {
  const ForwardScope scope(*this);
  return {{"loss", criterion_.forward(hidden(batch.inputs), *head_, batch.targets)}};
}

}  // namespace castor::samples
