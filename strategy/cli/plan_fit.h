// What would make a run fit its machine: other settings are planned, the cheapest first, until one fits.
//
// Delicate: "cheapest" is an order of settings by what they cost in time, not a measurement: sharding more, then
// keeping states in host memory, then on disk, then smaller micro-batches (the same global batch), then more ranks.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "strategy/config/node.h"
#include "strategy/plan.h"
#include "strategy/registry.h"

namespace castor::strategy {

/// A change of a config, and what it leads to.
struct FittingChange {
  std::string text;  ///< "strategy.plugin={type: gemini, ...}", to be given to --cfg-options
  Plan plan;
};

/// The first change after which the run fits `limits`; none if no tried one does.
std::optional<FittingChange> cheapest_change(const ConfigNode& config, const std::string& what,
                                             const Registry& registry, std::int64_t world_size,
                                             const MemoryLimits& limits);

}  // namespace castor::strategy
