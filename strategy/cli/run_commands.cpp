// What the subcommands do once their arguments are parsed: the bridge from the command line to the runner.
//
// Delicate: with --json nothing but the JSON may reach standard output, so nothing here logs.
#include <csignal>
#include <memory>
#include <nlohmann/json.hpp>
#include <ostream>
#include <string>

#include "autograd/nn/trainable.h"
#include "core/base/interrupt.h"
#include "core/base/json.h"
#include "strategy/checkpoint.h"
#include "strategy/cli/byte_size.h"
#include "strategy/cli/generate.h"
#include "strategy/cli/plan.h"
#include "strategy/cli/plan_fit.h"
#include "strategy/cli/test.h"
#include "strategy/cli/train.h"
#include "strategy/config.h"
#include "strategy/registry.h"
#include "strategy/runner/runner.h"
#include "strategy/runner/strategy_arguments.h"
#include "strategy/text_generation.h"

namespace castor::strategy {

int run_train(const TrainArguments& arguments, Registry& registry, std::ostream&) {
  std::signal(SIGPIPE, SIG_IGN);  // who stops reading its lines stops no training
  Runner runner(load_train_config(arguments), arguments.config, registry);
  runner.train();  // a stop shows in the exit code of the program
  return kExitOk;
}

int run_test(const TestArguments& arguments, Registry& registry, std::ostream& out) {
  Runner runner(load_test_config(arguments), arguments.config, registry);
  for (const auto& [name, value] : runner.test()) out << name << ": " << value << "\n";
  return kExitOk;
}

namespace {

MemoryLimits memory_limits(const PlanArguments& arguments) {
  MemoryLimits limits;
  if (arguments.target) {
    constexpr std::int64_t kGibibyte = std::int64_t{1} << 30;
    const Machine& machine = machine_named(*arguments.target);
    if (machine.memory_gib > 0) limits.device_bytes = machine.memory_gib * kGibibyte;
    if (machine.host_gib > 0) limits.host_bytes = machine.host_gib * kGibibyte;
  }
  const auto bytes = [](const std::string& text, const char* flag) {
    return static_cast<std::int64_t>(parse_size(text, flag));
  };
  if (arguments.device_memory) limits.device_bytes = bytes(*arguments.device_memory, "--device-memory");
  if (arguments.host_memory) limits.host_bytes = bytes(*arguments.host_memory, "--host-memory");
  return limits;
}

}  // namespace

int run_plan(const PlanArguments& arguments, Registry& registry, std::ostream& out) {
  FittingTask task{
      load_config(arguments), arguments.config, arguments.world_size.value_or(1), memory_limits(arguments), {}};
  if (arguments.target) task.target = machine_named(*arguments.target).type;
  const Plan plan = Runner(task.config, task.what, registry).plan(task.world_size, task.limits, task.target);
  const Machine& machine = machine_named(arguments.target.value_or(plan.target == "cuda" ? "h100" : "cpu"));
  const StepEstimate estimate = estimate_step(plan, machine);
  std::optional<FittingChange> change;
  if (!plan.fits()) change = cheapest_change(task, registry, machine);
  if (arguments.json) {
    nlohmann::ordered_json json = plan_json(plan);
    json["estimate"] = estimate_json(estimate, machine);
    if (change) {
      json["change"] = {{"cfg_options", change->text},
                        {"device", change->plan.memory.peak_total},
                        {"host", change->plan.host.peak_total},
                        {"disk", change->plan.disk_bytes},
                        {"estimate", estimate_json(change->estimate, machine)}};
    }
    out << dump_json(json, 2) << "\n";
    return kExitOk;
  }
  out << plan_text(plan) << "\n" << estimate_text(estimate, machine) << "\n";
  if (plan.fits()) return kExitOk;
  if (change) {
    out << "it does not fit; the cheapest change that does: " << change->text << "\n  device "
        << bytes_text(change->plan.memory.peak_total) << ", host " << bytes_text(change->plan.host.peak_total)
        << ", disk " << bytes_text(static_cast<std::size_t>(change->plan.disk_bytes)) << "; "
        << estimate_text(change->estimate, machine) << "\n";
  } else {
    out << "it does not fit, nor does any plugin, smaller micro-batch or larger number of ranks that was tried\n";
  }
  return kExitOk;
}

int run_generate(const GenerateArguments& arguments, Registry& registry, std::ostream& out) {
  const RunnerConfig config = parse_runner_config(load_config(arguments), arguments.config, registry);
  const std::shared_ptr<autograd::TrainableModel> model =
      registry.models.build(config.model, autograd::TensorOptions{});
  autograd::name_tree(*model);
  LoadOptions loading;
  loading.strict = true;
  load_weights(*model,
               arguments.load_from ? *arguments.load_from
               : config.load_from  ? *config.load_from
                                   : find_last_checkpoint(config.work_dir),
               loading);
  GenerationOptions options;
  options.prompt = arguments.prompt;
  options.max_new_tokens = arguments.max_new_tokens;
  options.temperature = arguments.temperature;
  options.top_k = arguments.top_k;
  options.seed = static_cast<std::uint64_t>(arguments.seed.value_or(config.randomness.seed.value_or(0)));
  out << options.prompt << std::flush;
  generate_text(*model, options, [&out](std::string_view text) {
    out << text << std::flush;
    return !stop_requested();
  });
  out << "\n";
  return kExitOk;
}

}  // namespace castor::strategy
