// `castor check`: a config judged without running it, and the options of every type explained.
#pragma once

#include "strategy/cli/command_line.h"

namespace castor::strategy {

/// The subcommand. `check CONFIG` prints the effective config, every default filled in, or all mistakes; `--types`
/// lists what a config can name; `--help-type NAME` and `--help-config` explain options.
Subcommand check_command();

}  // namespace castor::strategy
