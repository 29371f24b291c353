// The list of commands.
#include "strategy/cli/ckpt.h"

namespace castor::strategy {

Subcommand ckpt_command() {
  Subcommand command;
  command.name = "ckpt";
  command.summary = "inspect, verify, compare, export, import and prune checkpoints";
  command.children = {ckpt_inspect_command(), ckpt_verify_command(), ckpt_diff_command(),
                      ckpt_export_command(),  ckpt_import_command(), ckpt_prune_command()};
  return command;
}

}  // namespace castor::strategy
