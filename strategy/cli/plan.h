// `castor plan CONFIG`: what a run would use, without running it.
#pragma once

#include <cstdint>
#include <functional>
#include <iosfwd>
#include <optional>
#include <string>

#include "strategy/cli/command_line.h"
#include "strategy/cli/config_arguments.h"

namespace castor::strategy {

/// What `castor plan` was given.
struct PlanArguments : ConfigArguments {
  bool json = false;                         ///< --json: for machines
  std::optional<std::int64_t> world_size;    ///< --world-size: ranks to plan for; the plan is rank 0's
  std::optional<std::string> device_memory;  ///< --device-memory: of each rank's device, as 80GiB
  std::optional<std::string> host_memory;    ///< --host-memory: of each rank's share of a host
  std::optional<std::string> target;         ///< --target: a machine of strategy/plan_cost.h
};

/// Plans on a meta device and prints to `out`. Returns an exit code; errors are thrown.
int run_plan(const PlanArguments& arguments, Registry& registry, std::ostream& out);

/// The subcommand over a function that plans.
Subcommand plan_command(std::function<int(const PlanArguments&, Registry&, std::ostream&)> plan);

}  // namespace castor::strategy
