// The argument surface of `castor plan`.
#include "strategy/cli/plan.h"

#include <memory>
#include <utility>

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
    list.flag("--json", arguments->json, "print JSON");
  };
  command.run = [arguments, plan = std::move(plan)](Registry& registry, std::ostream& out) {
    return plan(*arguments, registry, out);
  };
  return command;
}

}  // namespace castor::strategy
