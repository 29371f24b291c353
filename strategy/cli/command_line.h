// A program made of subcommands: parsing, help, exit codes, and one clear message for every error.
#pragma once

#include <functional>
#include <iosfwd>
#include <string>
#include <vector>

#include "strategy/cli/arguments.h"

namespace castor::strategy {

class Registry;

/// Exit codes; a stopped program ends with 128 + the signal (130 for Ctrl-C).
inline constexpr int kExitOk = 0;
inline constexpr int kExitRunError = 1;
inline constexpr int kExitUsage = 2;  ///< a mistake in a config or on the command line

/// One subcommand. The two functions share the state that the arguments are parsed into.
struct Subcommand {
  std::string name;
  std::string summary;                           ///< one line
  std::function<void(ArgumentList&)> configure;  ///< declares the arguments
  /// Does the work. What it computes goes to `out` (standard output); errors are thrown. Returns an exit code.
  std::function<int(Registry&, std::ostream& out)> run;
  std::vector<Subcommand> children = {};  ///< not empty: the next word picks one of these, and the functions are unused
};

/// Parses, runs one subcommand and returns the exit code. Nothing is thrown: a ConfigError gives kExitUsage, other
/// errors kExitRunError, each with one message on `err`. If a stop was asked for, the code is the stop's.
///   program    its name for messages, "castor"
///   arguments  without the program's name
///   out, err   standard output and standard error
int run_command_line(const std::string& program, const std::vector<std::string>& arguments,
                     const std::vector<Subcommand>& subcommands, Registry& registry, std::ostream& out,
                     std::ostream& err);

}  // namespace castor::strategy
