// Checking configs and explaining options, all from `describe` and the registry.
#include "strategy/cli/check.h"

#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <ostream>

#include "core/base/error.h"
#include "core/base/json.h"
#include "strategy/cli/config_arguments.h"
#include "strategy/config.h"
#include "strategy/registry.h"
#include "strategy/runner/strategy_arguments.h"

namespace castor::strategy {
namespace {

struct CheckArguments {
  std::optional<std::string> config;
  std::vector<std::string> cfg_options;
  bool json = false;
  bool types = false;
  bool help_config = false;
  std::optional<std::string> help_type;
};

/// Help of a type by name, in every table that has it. Throws ConfigError if none has.
std::string type_help(const Registry& registry, const std::string& name) {
  std::string out;
  std::vector<std::string> names;
  for (const TypeTableBase* table : registry.tables()) {
    for (const TypeTableBase::Entry& entry : table->entries()) names.push_back(entry.name);
    if (table->find(name) != nullptr) out += (out.empty() ? "" : "\n") + table->help(name);
  }
  if (!out.empty()) return out;
  const std::string nearest = nearest_name(name, names);
  throw ConfigError(cat("unknown type ", quote_json(name),
                        nearest.empty() ? "; `check --types` lists all" : cat("; did you mean ", nearest, "?")),
                    "");
}

int check(const CheckArguments& arguments, const Registry& registry, std::ostream& out) {
  const int asked = static_cast<int>(arguments.config.has_value()) + static_cast<int>(arguments.types) +
                    static_cast<int>(arguments.help_config) + static_cast<int>(arguments.help_type.has_value());
  if (asked != 1) throw ConfigError("give one of CONFIG, --types, --help-type NAME and --help-config", "");
  if (!arguments.config && (arguments.json || !arguments.cfg_options.empty())) {
    throw ConfigError("--json and --cfg-options go with CONFIG", "");
  }
  if (arguments.types) {
    out << list_types(registry);
  } else if (arguments.help_type) {
    out << type_help(registry, *arguments.help_type);
  } else if (arguments.help_config) {
    out << "The keys of a training config:\n" << options_help<RunnerConfig>();
  } else {
    ConfigArguments given;
    given.config = *arguments.config;
    given.cfg_options = arguments.cfg_options;
    const ConfigNode tree = load_config(given);
    const RunnerConfig config = parse_runner_config(tree, *arguments.config, registry);
    const ConfigNode effective = effective_config(config, &registry);
    out << (arguments.json ? dump_json(to_json(effective), 2) + "\n" : to_yaml(effective));
  }
  return kExitOk;
}

}  // namespace

Subcommand check_command() {
  auto arguments = std::make_shared<CheckArguments>();
  Subcommand command;
  command.name = "check";
  command.summary = "check a config and print it with every default, or explain what a config can hold";
  command.configure = [arguments](ArgumentList& list) {
    *arguments = {};
    list.optional_positional("CONFIG", arguments->config, "the config: a .yaml, .yml or .json file");
    list.option("--cfg-options", arguments->cfg_options, "KEY=VALUE ...", "replace values of the config");
    list.flag("--json", arguments->json, "print the effective config as JSON");
    list.flag("--types", arguments->types, "list every type that a config can name");
    list.option("--help-type", arguments->help_type, "NAME", "explain the options of a type");
    list.flag("--help-config", arguments->help_config, "explain the top-level keys");
  };
  command.run = [arguments](Registry& registry, std::ostream& out) { return check(*arguments, registry, out); };
  return command;
}

}  // namespace castor::strategy
