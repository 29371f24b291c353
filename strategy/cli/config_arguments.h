// The arguments that every command over a config shares: the file, and what is laid over it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "strategy/cli/arguments.h"
#include "strategy/config/node.h"

namespace castor::strategy {

/// CONFIG and its overrides.
struct ConfigArguments {
  std::string config;                    ///< path of a .yaml, .yml or .json file
  std::optional<std::string> work_dir;   ///< --work-dir
  std::vector<std::string> cfg_options;  ///< --cfg-options
};

/// Declares CONFIG, --work-dir and --cfg-options.
void declare_config_arguments(ConfigArguments& arguments, ArgumentList& list);

/// The config with everything laid over it: the file and its bases, --cfg-options, then --work-dir. Without a work_dir
/// anywhere it is work_dirs/<name of the file without its extension>, as the peers do.
/// Throws ConfigError.
ConfigNode load_config(const ConfigArguments& arguments);

}  // namespace castor::strategy
