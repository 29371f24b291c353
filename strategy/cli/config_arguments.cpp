// CONFIG, --work-dir and --cfg-options.
#include "strategy/cli/config_arguments.h"

#include <filesystem>
#include <memory>

#include "strategy/config/load.h"

namespace castor::strategy {

void declare_config_arguments(ConfigArguments& arguments, ArgumentList& list) {
  list.positional("CONFIG", arguments.config, "the config: a .yaml, .yml or .json file");
  list.option("--work-dir", arguments.work_dir, "DIR",
              "folder of logs and checkpoints; replaces the config's work_dir");
  list.option("--cfg-options", arguments.cfg_options, "KEY=VALUE ...",
              "replace values of the config: a.b=1e-3 a.0.c=[1,2]; ends at the next option");
}

ConfigNode load_config(const ConfigArguments& arguments) {
  ConfigNode config = load_config(arguments.config, arguments.cfg_options);
  if (arguments.work_dir) {
    ConfigNode value(*arguments.work_dir);
    value.set_mark({std::make_shared<const std::string>("--work-dir"), 0});
    config.set("work_dir", std::move(value));
  } else if (config.find("work_dir") == nullptr) {
    config.set("work_dir", "work_dirs/" + std::filesystem::path(arguments.config).stem().string());
  }
  return config;
}

}  // namespace castor::strategy
