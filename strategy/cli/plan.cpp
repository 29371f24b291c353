// The argument surface of `castor plan`.
#include "strategy/cli/plan.h"

#include <memory>
#include <utility>
#include <vector>

#include "strategy/plan_cost.h"

namespace castor::strategy {

Subcommand plan_command(std::function<int(const PlanArguments&, Registry&, std::ostream&)> plan) {
  auto arguments = std::make_shared<PlanArguments>();
  Subcommand command;
  command.name = "plan";
  command.summary = "print the memory, FLOPs and order of accesses of a training step, without running one";
  command.configure = [arguments](ArgumentList& list) {
    *arguments = {};
    declare_config_arguments(*arguments, list);
    list.option("--world-size", arguments->world_size, "N", "ranks to plan for; what is printed is rank 0's");
    list.option("--device-memory", arguments->device_memory, "SIZE",
                "memory of a rank's device, as 80GiB: says whether the run fits and what would make it fit");
    list.option("--host-memory", arguments->host_memory, "SIZE", "the same of the host's memory that a rank may use");
    std::vector<std::string> names;
    for (const Machine& machine : machines()) names.emplace_back(machine.name);
    list.choice("--target", arguments->target, std::move(names),
                "what the run is for: its kernels and rates, and where they are not given its device's memory (80, 141 "
                "and 80 GiB) and share of the host's (256 GiB)");
    list.flag("--json", arguments->json, "print JSON");
  };
  command.run = [arguments, plan = std::move(plan)](Registry& registry, std::ostream& out) {
    return plan(*arguments, registry, out);
  };
  return command;
}

}  // namespace castor::strategy
