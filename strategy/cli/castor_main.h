// The library's whole command line as one call: a program fills a registry with its types and hands it over.
//
//   int main(int argc, char** argv) {
//     castor::strategy::Registry registry;
//     castor::strategy::add_builtins(registry);
//     registry.models.add<MyConfig>("MyModel", "what it is", make_my_model);
//     return castor::strategy::castor_main(argc, argv, registry);
//   }
#pragma once

#include <vector>

#include "strategy/cli/command_line.h"

namespace castor::strategy {

/// Runs the subcommand that the arguments name, with Ctrl-C and SIGTERM turned into stop_requested().
///   registry  filled by the program
///   own       the program's own subcommands, after the library's; one of the same name replaces the library's
/// Returns the exit code: 0 ok, 1 run error, 2 config or usage, 130 Ctrl-C. Nothing is thrown.
int castor_main(int argc, char** argv, Registry& registry, std::vector<Subcommand> own = {});

/// The library's subcommands: train, test, plan, generate, check, ckpt.
std::vector<Subcommand> builtin_subcommands();

}  // namespace castor::strategy
