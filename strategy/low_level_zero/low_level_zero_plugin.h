// LowLevelZeroPlugin: every rank computes with the whole model and steps a share of it. Stage 1 shards masters and
// optimizer states; stage 2 gradients, too, whose buffers live only until they are sent.
//
// Source: Rajbhandari et al. 2020, arXiv:1910.02054, sections 5.1 and 5.2. The parameters are ColossalAI's. Delicate:
// parameters are moved into flat arrays (dist/flat_layout.h), so that gathering the stepped weights copies nothing.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "strategy/config/field.h"
#include "strategy/plugin.h"

namespace castor::strategy {

class LowLevelZeroPlugin final : public Plugin {
 public:
  struct Config {
    std::int64_t stage = 1;
    std::string precision = "fp16";
    bool use_fp8 = false;
    autograd::GradScalerConfig grad_scaler = {.initial_scale = 4294967296.0};
    double max_norm = 0;
    double norm_type = 2;
    double reduce_bucket_size_in_m = 12;
    std::optional<std::string> communication_dtype;
    bool overlap_communication = true;
    bool master_weights = true;
    bool cpu_offload = false;
    bool overlap_allgather = false;
    std::int64_t extra_dp_size = 1;
  };
  explicit LowLevelZeroPlugin(const Config& config);

  const char* type_name() const override { return "LowLevelZeroPlugin"; }
  PluginSettings settings() const override;
  std::unique_ptr<Sharding> shard(const ShardRequest& request) override;

 private:
  Config config_;
};

template <class V>
void describe(V& v, LowLevelZeroPlugin::Config& c) {
  v.field("stage", c.stage, "1: optimizer states are sharded; 2: gradients too", at_least(1), at_most(2));
  v.field("precision", c.precision, "of weights and activations", one_of({"fp16", "bf16", "fp32", "fp8"}));
  v.field("use_fp8", c.use_fp8, "with precision bf16: linear layers multiply 8-bit numbers, as precision fp8 says");
  describe_grad_scaler(v, c.grad_scaler);
  v.field("max_norm", c.max_norm, "largest L2 norm of all gradients; 0: no clipping", at_least(0));
  v.field("norm_type", c.norm_type, "the norm's order; only 2", at_least(2), at_most(2));
  v.field("reduce_bucket_size_in_m", c.reduce_bucket_size_in_m,
          "2^20 elements of gradients that are exchanged together", more_than(0));
  v.field("communication_dtype", c.communication_dtype,
          "what gradients are rounded to before they are exchanged; null: the precision's own",
          one_of({"fp32", "fp16", "bf16"}));
  v.field("overlap_communication", c.overlap_communication, "exchange gradients while backward goes on");
  v.field("master_weights", c.master_weights,
          "keep f32 copies of 16-bit weights; without them updates smaller than their rounding are lost");
  v.field("cpu_offload", c.cpu_offload,
          "keep masters and optimizer states in host memory, in stage 2 gradients too, and step there");
  v.field("overlap_allgather", c.overlap_allgather,
          "go on while stepped weights are gathered: a bucket is waited for when it is used");
  v.field("extra_dp_size", c.extra_dp_size,
          "groups of ranks that each hold all shards: less is sharded, and weights are gathered inside a group",
          at_least(1));
  v.retired("cast_inputs", ConfigNode(true), "floating-point inputs always get the model's precision");
  v.retired("fp8_communication", ConfigNode(false), "gradients are exchanged in the precision they are computed in");
  v.retired("verbose", ConfigNode(false), "skipped steps are always logged");
}

}  // namespace castor::strategy
