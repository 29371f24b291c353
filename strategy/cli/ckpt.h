// `castor ckpt`: looking into checkpoints, checking, comparing, converting and thinning them out.
#pragma once

#include "strategy/cli/command_line.h"

namespace castor::strategy {

/// The command with its own commands: inspect, verify, diff, export, import, prune. They read and write files only; no
/// config and no model is needed.
Subcommand ckpt_command();

/// Each by itself.
Subcommand ckpt_inspect_command();
Subcommand ckpt_verify_command();
Subcommand ckpt_diff_command();
Subcommand ckpt_export_command();
Subcommand ckpt_import_command();
Subcommand ckpt_prune_command();

}  // namespace castor::strategy
