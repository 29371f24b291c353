// The table of subcommands, bound to the functions that do the work.
#include "strategy/cli/castor_main.h"

#include <algorithm>
#include <exception>
#include <iostream>
#include <string>

#include "core/base/error.h"
#include "core/base/interrupt.h"
#include "dist/run_job.h"
#include "strategy/cli/bench.h"
#include "strategy/cli/check.h"
#include "strategy/cli/ckpt.h"
#include "strategy/cli/generate.h"
#include "strategy/cli/plan.h"
#include "strategy/cli/run.h"
#include "strategy/cli/test.h"
#include "strategy/cli/train.h"
#include "strategy/registry.h"

namespace castor::strategy {

std::vector<Subcommand> builtin_subcommands() {
  return {train_command(run_train), test_command(run_test), plan_command(run_plan), generate_command(run_generate),
          check_command(),          ckpt_command(),         bench_command(),        run_command(dist::run_job)};
}

int castor_main(int argc, char** argv, Registry& registry, std::vector<Subcommand> own) {
  try {
    install_stop_handlers();
    std::vector<Subcommand> subcommands = builtin_subcommands();
    for (Subcommand& subcommand : own) {
      const auto same = std::find_if(subcommands.begin(), subcommands.end(),
                                     [&](const Subcommand& other) { return other.name == subcommand.name; });
      if (same == subcommands.end()) {
        subcommands.push_back(std::move(subcommand));
      } else {
        *same = std::move(subcommand);
      }
    }
    std::string program = argc > 0 ? argv[0] : "castor";
    program = program.substr(program.find_last_of('/') + 1);
    const std::vector<std::string> arguments(argv + std::min(argc, 1), argv + argc);
    return run_command_line(program, arguments, subcommands, registry, std::cout, std::cerr);
  } catch (const std::exception& error) {
    std::cerr << "castor: " << error.what() << "\n";
    return kExitRunError;
  }
}

}  // namespace castor::strategy
