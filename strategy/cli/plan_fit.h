// What would make a run fit its machine: other settings are planned, and of those that fit the one whose step takes
// least time on that machine is the answer.
//
// Delicate: a plan of a large model takes a part of a second, so settings that can only be dearer than one that fits,
// or larger than one that does not, are not planned.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "strategy/config/node.h"
#include "strategy/plan.h"
#include "strategy/plan_cost.h"
#include "strategy/registry.h"

namespace castor::strategy {

/// A change of a config, and what it leads to.
struct FittingChange {
  std::string text;  ///< "strategy.plugin={type: gemini, ...}", to be given to --cfg-options
  Plan plan;
  StepEstimate estimate;
};

/// What a plan is made for.
struct FittingTask {
  ConfigNode config;
  std::string what;  ///< the config's name in messages
  std::int64_t world_size = 1;
  MemoryLimits limits;
  std::optional<DeviceType> target;  ///< as Runner::plan takes it
};

/// The change with the shortest step after which the run fits `limits`: another plugin or placement, recomputation,
/// smaller micro-batches of the same global batch; only where none of these does, more ranks. None if nothing does.
std::optional<FittingChange> cheapest_change(const FittingTask& task, const Registry& registry, const Machine& machine);

}  // namespace castor::strategy
