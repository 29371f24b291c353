// What the subcommands do once their arguments are parsed: the bridge from the command line to the runner.
//
// Delicate: with --json nothing but the JSON may reach standard output, so nothing here logs.
#include <memory>
#include <nlohmann/json.hpp>
#include <ostream>
#include <string>

#include "autograd/nn/trainable.h"
#include "core/base/interrupt.h"
#include "core/base/json.h"
#include "strategy/checkpoint.h"
#include "strategy/cli/generate.h"
#include "strategy/cli/plan.h"
#include "strategy/cli/test.h"
#include "strategy/cli/train.h"
#include "strategy/config.h"
#include "strategy/registry.h"
#include "strategy/runner/runner.h"
#include "strategy/text_generation.h"

namespace castor::strategy {

int run_train(const TrainArguments& arguments, Registry& registry, std::ostream&) {
  Runner runner(load_train_config(arguments), arguments.config, registry);
  runner.train();  // a stop shows in the exit code of the program
  return kExitOk;
}

int run_test(const TestArguments& arguments, Registry& registry, std::ostream& out) {
  Runner runner(load_test_config(arguments), arguments.config, registry);
  for (const auto& [name, value] : runner.test()) out << name << ": " << value << "\n";
  return kExitOk;
}

int run_plan(const PlanArguments& arguments, Registry& registry, std::ostream& out) {
  Runner runner(load_config(arguments), arguments.config, registry);
  const Plan plan = runner.plan(arguments.world_size.value_or(1));
  out << (arguments.json ? dump_json(plan_json(plan), 2) : plan_text(plan)) << "\n";
  return kExitOk;
}

int run_generate(const GenerateArguments& arguments, Registry& registry, std::ostream& out) {
  const auto config = parse_config<RunnerConfig>(load_config(arguments), arguments.config, &registry);
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
