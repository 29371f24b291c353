// GeminiPlugin: every rank has a piece of each chunk of weights, gradients and optimizer states; whole chunks exist
// only while they are used, as far as memory is short.
//
// The parameters are ColossalAI's (FEATURES names follow its GeminiPlugin). Sources: Fang et al. 2022,
// arXiv:2108.05818; Rajbhandari et al. 2020, arXiv:1910.02054. Delicate: the model is built on meta and filled chunk by
// chunk, so nothing of its full size is ever allocated.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "strategy/config/field.h"
#include "strategy/plugin.h"

namespace castor::strategy {

class GeminiPlugin final : public Plugin {
 public:
  struct Config {
    std::string placement_policy = "static";
    std::string precision = "fp16";
    bool use_fp8 = false;
    bool enable_gradient_accumulation = false;
    std::int64_t max_prefetch = 0;
    double shard_param_frac = 1.0;
    double offload_optim_frac = 0.0;
    double offload_param_frac = 0.0;
    double nvme_offload_fraction = 0.0;
    double nvme_offload_param_fraction = 0.0;
    std::optional<std::string> nvme_offload_dir;
    double warmup_non_model_data_ratio = 0.8;
    double steady_cuda_cap_ratio = 0.9;
    std::optional<double> device_memory_gib;
    std::optional<double> host_memory_gib;
    bool master_weights = true;
    double min_chunk_size_m = 32;
    double search_range_m = 96;
    std::optional<std::int64_t> hidden_dim;
    bool enable_async_reduce = true;
    autograd::GradScalerConfig grad_scaler;
    double max_norm = 0;
    double norm_type = 2;
    std::int64_t extra_dp_size = 1;
    bool verbose = false;
  };
  explicit GeminiPlugin(const Config& config) : config_(config) {}

  const char* type_name() const override { return "GeminiPlugin"; }
  PluginSettings settings() const override;
  std::unique_ptr<Sharding> shard(const ShardRequest& request) override;

 private:
  Config config_;
};

template <class V>
void describe(V& v, GeminiPlugin::Config& c) {
  v.field("placement_policy", c.placement_policy,
          "static: the fractions below say what is where; auto: as much as fits is kept", one_of({"static", "auto"}));
  v.field("precision", c.precision, "of weights and activations", one_of({"fp16", "bf16", "fp32", "fp8"}));
  v.field("use_fp8", c.use_fp8, "with precision bf16: linear layers multiply 8-bit numbers, as precision fp8 says");
  v.field("enable_gradient_accumulation", c.enable_gradient_accumulation,
          "keep f32 sums of gradients between micro-steps; needed for accumulative_counts above 1");
  v.field("max_prefetch", c.max_prefetch, "chunks that are gathered ahead of their use", at_least(0));
  v.field("shard_param_frac", c.shard_param_frac,
          "static: 1: whole chunks exist only while used; less: this share of their bytes is not kept", at_least(0),
          at_most(1));
  v.field("offload_optim_frac", c.offload_optim_frac,
          "static: share of the optimizer states and masters that live, and are stepped, in host memory", at_least(0),
          at_most(1));
  v.field("offload_param_frac", c.offload_param_frac, "static: share of the weights' pieces that live in host memory",
          at_least(0), at_most(1));
  v.field("nvme_offload_fraction", c.nvme_offload_fraction,
          "static: share of offload_optim_frac's states and masters that live in a file and pass through host memory",
          at_least(0), at_most(1));
  v.field("nvme_offload_param_fraction", c.nvme_offload_param_fraction,
          "static: share of offload_param_frac's weights that live in a file", at_least(0), at_most(1));
  v.field("nvme_offload_dir", c.nvme_offload_dir,
          "folder on a fast disk for those files; they have no names and vanish with the process");
  v.field(
      "warmup_non_model_data_ratio", c.warmup_non_model_data_ratio,
      "auto where no plan was made before: share of the device's memory that chunks leave free in the first micro-step",
      at_least(0), at_most(1));
  v.field("steady_cuda_cap_ratio", c.steady_cuda_cap_ratio, "auto: share of the device's memory that is used",
          more_than(0), at_most(1));
  v.field("device_memory_gib", c.device_memory_gib, "auto: GiB that this rank may use; null: all of the device's",
          more_than(0));
  v.field("host_memory_gib", c.host_memory_gib,
          "auto: GiB of host memory that this rank may use before nvme_offload_dir; null: all of the host's",
          more_than(0));
  v.field("master_weights", c.master_weights,
          "keep f32 copies of 16-bit weights; without them updates smaller than their rounding are lost");
  v.field("min_chunk_size_m", c.min_chunk_size_m, "2^20 elements: the smallest chunk", more_than(0));
  v.field("search_range_m", c.search_range_m,
          "2^20 elements: how much larger chunks may be where no smaller size is filled to 99.5 %", at_least(0));
  v.field("hidden_dim", c.hidden_dim, "step of the search in elements; null: 1024", at_least(1));
  v.field("enable_async_reduce", c.enable_async_reduce, "reduce gradients while backward goes on");
  describe_grad_scaler(v, c.grad_scaler);
  v.field("max_norm", c.max_norm, "largest L2 norm of all gradients; 0: no clipping", at_least(0));
  v.field("norm_type", c.norm_type, "the norm's order; only 2", at_least(2), at_most(2));
  v.field("extra_dp_size", c.extra_dp_size,
          "groups of ranks that each hold all pieces: less is sharded, and chunks are gathered inside a group",
          at_least(1));
  v.field("verbose", c.verbose, "log the chunks and what moved");
  v.check(
      "device_memory_gib", [&] { return !c.device_memory_gib || c.placement_policy == "auto"; },
      "is for placement_policy: auto");
  v.check(
      "host_memory_gib", [&] { return !c.host_memory_gib || c.placement_policy == "auto"; },
      "is for placement_policy: auto");
  const auto has_disk = [&] { return c.nvme_offload_fraction > 0 || c.nvme_offload_param_fraction > 0; };
  v.check(
      "nvme_offload_dir", [&] { return !has_disk() || c.nvme_offload_dir.has_value(); },
      "is needed: name a folder for nvme_offload_fraction and nvme_offload_param_fraction");
  v.check(
      "nvme_offload_fraction", [&] { return c.nvme_offload_fraction == 0 || c.offload_optim_frac > 0; },
      "is a share of offload_optim_frac, which is 0");
  v.check(
      "nvme_offload_param_fraction", [&] { return c.nvme_offload_param_fraction == 0 || c.offload_param_frac > 0; },
      "is a share of offload_param_frac, which is 0");
  v.check(
      "nvme_offload_param_fraction", [&] { return c.nvme_offload_param_fraction == 0 || c.offload_optim_frac == 1; },
      "needs offload_optim_frac: 1, since weights in files are stepped on the host");
  v.retired("chunk_config_dict", ConfigNode(), "chunks are laid out by min_chunk_size_m and search_range_m");
  v.retired("chunk_init_device", ConfigNode(), "chunks are filled one at a time where the model lives");
  v.retired("pin_memory", ConfigNode(false), "host memory is pinned where a device can use it");
  v.retired("force_outputs_fp32", ConfigNode(false), "predictions are always f32");
  v.retired("strict_ddp_mode", ConfigNode(false), "choose TorchDDPPlugin");
  v.retired("memstats", ConfigNode(), "the plan shows what is used when");
  v.retired("gpu_margin_mem_ratio", ConfigNode(0.0), "auto keeps what fits by itself");
  v.retired("tp_size", ConfigNode(1), "Castor has no tensor parallelism");
  v.retired("enable_all_optimization", ConfigNode(false), "kernels are always the fused ones");
  v.retired("enable_fused_normalization", ConfigNode(false), "kernels are always the fused ones");
  v.retired("enable_flash_attention", ConfigNode(false), "attention never stores its scores");
  v.retired("enable_sequence_parallelism", ConfigNode(false), "Castor has no tensor parallelism");
  v.retired("enable_jit_fused", ConfigNode(false), "kernels are always the fused ones");
  v.retired("fp8_communication", ConfigNode(false), "weights are gathered in the precision they are used in");
}

}  // namespace castor::strategy
