// `castor train CONFIG`: the arguments; the run itself is run_train.
#pragma once

#include <functional>
#include <iosfwd>
#include <optional>
#include <string>

#include "strategy/cli/command_line.h"
#include "strategy/cli/config_arguments.h"

namespace castor::strategy {

/// What `castor train` was given.
struct TrainArguments : ConfigArguments {
  std::optional<std::string> resume;    ///< --resume: "auto" or a path
  std::optional<std::string> launcher;  ///< --launcher
};

/// The config with the arguments laid over it. `--resume` becomes `resume: true`, and `load_from` if it names a path,
/// as the peers do; `--launcher` becomes `launcher`. Throws ConfigError.
ConfigNode load_train_config(const TrainArguments& arguments);

/// Trains. Returns an exit code; errors are thrown.
int run_train(const TrainArguments& arguments, Registry& registry, std::ostream& out);

/// The subcommand over a function that trains.
Subcommand train_command(std::function<int(const TrainArguments&, Registry&, std::ostream&)> train);

}  // namespace castor::strategy
