// `castor test CONFIG`: the test data of a config through a trained model.
#pragma once

#include <functional>
#include <iosfwd>
#include <optional>
#include <string>

#include "strategy/cli/command_line.h"
#include "strategy/cli/config_arguments.h"

namespace castor::strategy {

/// What `castor test` was given.
struct TestArguments : ConfigArguments {
  std::optional<std::string> load_from;  ///< --load-from: weights; default: the config's, else the last of the work_dir
};

/// The config with the arguments laid over it: `--load-from` becomes `load_from`. Throws ConfigError.
ConfigNode load_test_config(const TestArguments& arguments);

/// Tests and prints a line a result to `out`. Returns an exit code; errors are thrown.
int run_test(const TestArguments& arguments, Registry& registry, std::ostream& out);

/// The subcommand over a function that tests.
Subcommand test_command(std::function<int(const TestArguments&, Registry&, std::ostream&)> test);

}  // namespace castor::strategy
