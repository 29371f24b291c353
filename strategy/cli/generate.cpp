// The argument surface of `castor generate`.
#include "strategy/cli/generate.h"

#include <cmath>
#include <memory>
#include <utility>

#include "core/base/error.h"

namespace castor::strategy {
namespace {

void check(const GenerateArguments& arguments) {
  const auto refuse = [](const std::string& text) { throw ConfigError(text, ""); };
  if (arguments.max_new_tokens < 1)
    refuse(cat("--max-new-tokens: at least 1 expected, got ", arguments.max_new_tokens));
  if (!std::isfinite(arguments.temperature) || arguments.temperature < 0) {
    refuse(cat("--temperature: a number from 0 expected, got ", arguments.temperature));
  }
  if (arguments.top_k && *arguments.top_k < 1) refuse(cat("--top-k: at least 1 expected, got ", *arguments.top_k));
  if (arguments.seed && *arguments.seed < 0) refuse(cat("--seed: at least 0 expected, got ", *arguments.seed));
}

}  // namespace

Subcommand generate_command(std::function<int(const GenerateArguments&, Registry&, std::ostream&)> generate) {
  auto arguments = std::make_shared<GenerateArguments>();
  Subcommand command;
  command.name = "generate";
  command.summary = "continue a text with a trained language model";
  command.configure = [arguments](ArgumentList& list) {
    *arguments = {};
    declare_config_arguments(*arguments, list);
    list.option("--load-from", arguments->load_from, "PATH", "the weights; left out: the last saved in the work_dir");
    list.option("--prompt", arguments->prompt, "TEXT", "the text to continue");
    list.option("--max-new-tokens", arguments->max_new_tokens, "N", "tokens to add");
    list.option("--temperature", arguments->temperature, "T", "spread of the choice; 0 takes the likeliest token");
    list.option("--top-k", arguments->top_k, "K", "choose among the K likeliest tokens only");
    list.option("--seed", arguments->seed, "SEED", "of the choice; left out: the config's");
  };
  command.run = [arguments, generate = std::move(generate)](Registry& registry, std::ostream& out) {
    check(*arguments);
    return generate(*arguments, registry, out);
  };
  return command;
}

}  // namespace castor::strategy
