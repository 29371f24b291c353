// What a ShardRequest says of its parameters, and the host's tier.
#include "strategy/plugin.h"

namespace castor::strategy {

std::vector<autograd::Variable> ShardRequest::trained() const {
  std::vector<autograd::Variable> found;
  for (const autograd::Variable& parameter : parameters) {
    if (parameter.requires_grad()) found.push_back(parameter);
  }
  return found;
}

void check_replicas(int world_size, std::int64_t extra_dp_size, const char* plugin) {
  if (world_size % extra_dp_size == 0) return;
  throw ConfigError(cat(plugin, ": ", world_size, " ranks do not make extra_dp_size = ", extra_dp_size,
                        " groups of equal size; give a divisor of ", world_size),
                    "strategy.plugin.extra_dp_size");
}

Device host_tier(Device device) {
  if (device.is_meta()) return make_meta({DeviceType::cpu, "", 0});
  return kHost;
}

}  // namespace castor::strategy
