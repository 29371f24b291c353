// `castor generate CONFIG`: text from a trained language model.
#pragma once

#include <cstdint>
#include <functional>
#include <iosfwd>
#include <optional>
#include <string>

#include "strategy/cli/command_line.h"
#include "strategy/cli/config_arguments.h"

namespace castor::strategy {

/// What `castor generate` was given.
struct GenerateArguments : ConfigArguments {
  std::optional<std::string> load_from;  ///< --load-from: weights; default: the last saved of the work_dir
  std::string prompt;                    ///< --prompt: the text to continue
  std::int64_t max_new_tokens = 400;     ///< --max-new-tokens
  double temperature = 0.8;              ///< --temperature: 0 takes the likeliest
  std::optional<std::int64_t> top_k;     ///< --top-k: among the k likeliest only
  std::optional<std::int64_t> seed;      ///< --seed: of the draws; default: the config's
};

/// Generates and prints to `out`. Returns an exit code; errors are thrown.
int run_generate(const GenerateArguments& arguments, Registry& registry, std::ostream& out);

/// The subcommand over a function that generates. Values out of range are refused before it is called.
Subcommand generate_command(std::function<int(const GenerateArguments&, Registry&, std::ostream&)> generate);

}  // namespace castor::strategy
