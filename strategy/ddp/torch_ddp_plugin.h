// TorchDDPPlugin: every rank has the whole model and optimizer; gradients meet in buckets.
//
// Source: Li et al. 2020, arXiv:2006.15704 (buckets that start their exchange while backward goes on). Unlike there the
// sum is exchanged and added in the order of the micro-batches and not ring-reduced, so results do not depend on the
// number of ranks.
#pragma once

#include "strategy/config/field.h"
#include "strategy/plugin.h"

namespace castor::strategy {

class TorchDDPPlugin final : public Plugin {
 public:
  struct Config {
    bool broadcast_buffers = true;
    double bucket_cap_mb = 25;
    bool find_unused_parameters = false;
  };
  explicit TorchDDPPlugin(const Config& config) : config_(config) {}

  const char* type_name() const override { return "TorchDDPPlugin"; }
  std::unique_ptr<Sharding> shard(const ShardRequest& request) override;

 private:
  Config config_;
};

template <class V>
void describe(V& v, TorchDDPPlugin::Config& c) {
  v.field("bucket_cap_mb", c.bucket_cap_mb, "MiB of gradients that are exchanged together", more_than(0));
  v.retired("broadcast_buffers", ConfigNode(true),
            "buffers that follow the data are updated on every rank from all micro-batches, in their order");
  v.retired("find_unused_parameters", ConfigNode(false), "a parameter without a gradient counts as zero by contract");
  v.retired("check_reduction", ConfigNode(false), "every collective is checked on every rank, always");
  v.retired("gradient_as_bucket_view", ConfigNode(false), "gradients are views of the buckets, always");
  v.retired("static_graph", ConfigNode(false), "nothing is learned from the first step");
  v.retired("fp8_communication", ConfigNode(false),
            "gradients are exchanged in the precision in which they are summed");
}

}  // namespace castor::strategy
