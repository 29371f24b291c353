// What a subcommand takes on the command line, as a list of declarations.
//
// Subcommands declare; command_line.cpp alone parses, so that CLI11 (12 s to compile) is in one file. Delicate: targets
// are pointers into the subcommand's own state, which must outlive the parse.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

namespace castor::strategy {

/// One declared argument.
struct Argument {
  using Target = std::variant<bool*, std::string*, std::optional<std::string>*, std::int64_t*,
                              std::optional<std::int64_t>*, double*, std::vector<std::string>*>;
  std::string name;         ///< "--work-dir" or "--work-dir,-w"; without dashes a positional one, as "CONFIG"
  std::string placeholder;  ///< what the help shows for the value, as "DIR"; empty for flags
  std::string doc;
  Target target;
  bool required = false;
  std::string implied;               ///< not empty: the value may be left out and is this then
  std::vector<std::string> choices;  ///< not empty: the only values
  bool takes_rest = false;           ///< the first word that belongs to no flag, and all behind it as they are
};

/// The arguments of one subcommand in the order of the help. Values that stand in a target are the defaults.
class ArgumentList {
 public:
  /// A required value without a flag: CONFIG.
  void positional(std::string name, std::string& target, std::string doc);
  /// One or more words: PATH ...
  void positional(std::string name, std::vector<std::string>& target, std::string doc);
  /// A value without a flag that may be left out.
  void optional_positional(std::string name, std::optional<std::string>& target, std::string doc);
  /// Another program's command line: the first word that belongs to no flag (or follows "--") and all words behind it,
  /// which are not looked at. The last declaration.
  void rest(std::string name, std::vector<std::string>& target, std::string doc);
  /// A switch: present is true.
  void flag(std::string name, bool& target, std::string doc);
  /// A flag with a value: text, a number, or a list that takes all words up to the next flag and may be repeated.
  template <class T>
  void option(std::string name, T& target, std::string placeholder, std::string doc) {
    add({std::move(name), std::move(placeholder), std::move(doc), &target, false, "", {}});
  }
  /// A flag whose value may be left out, which then is `implied`.
  void option_with_implied(std::string name, std::optional<std::string>& target, std::string implied,
                           std::string placeholder, std::string doc);
  /// A flag with a value out of a few.
  void choice(std::string name, std::optional<std::string>& target, std::vector<std::string> choices, std::string doc);

  const std::vector<Argument>& arguments() const { return arguments_; }

 private:
  void add(Argument argument) { arguments_.push_back(std::move(argument)); }

  std::vector<Argument> arguments_;
};

}  // namespace castor::strategy
