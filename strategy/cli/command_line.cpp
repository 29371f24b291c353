// CLI11 behind ArgumentList, and the catch-all of the program.
//
// Delicate: CLI11 stops at its first complaint and never suggests a name, so required and unknown arguments are judged
// here, after its parse; then a mistyped flag is named as such and not as the missing CONFIG that it caused. The help
// is written here as well, since CLI11's shows required arguments as optional ones.
#include "strategy/cli/command_line.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <charconv>
#include <exception>
#include <functional>
#include <new>
#include <ostream>

#include "build_config.h"
#include "core/base/error.h"
#include "core/base/interrupt.h"
#include "core/base/json.h"
#include "strategy/config/diagnostics.h"
#include "strategy/config/option_help.h"

namespace castor::strategy {
namespace {

bool is_flag_name(const std::string& name) { return name.starts_with('-'); }

/// "--work-dir,-w" gives both names.
std::vector<std::string> names_of(const Argument& argument) {
  std::vector<std::string> names;
  std::size_t begin = 0;
  while (begin <= argument.name.size()) {
    const std::size_t end = std::min(argument.name.find(',', begin), argument.name.size());
    names.push_back(argument.name.substr(begin, end - begin));
    begin = end + 1;
  }
  return names;
}

/// " (default 400)" for numbers; other defaults are in the docs.
std::string default_text(const Argument& argument) {
  if (const auto* number = std::get_if<std::int64_t*>(&argument.target)) return cat(" (default ", **number, ")");
  if (const auto* number = std::get_if<double*>(&argument.target)) return cat(" (default ", **number, ")");
  return "";
}

/// Declares one argument to CLI11.
CLI::Option* declare(CLI::App& app, const Argument& argument) {
  return std::visit(
      [&]<class T>(T* target) -> CLI::Option* {
        if constexpr (std::is_same_v<T, bool>) {
          return app.add_flag(argument.name, *target, argument.doc);
        } else {
          CLI::Option* option = app.add_option(argument.name, *target, argument.doc);
          if (!argument.placeholder.empty()) option->type_name(argument.placeholder);
          if (is_flag_name(argument.name) && std::is_same_v<T, std::vector<std::string>>) option->expected(1, 1 << 20);
          if (!argument.implied.empty()) option->expected(0, 1)->default_str(argument.implied);
          return option;
        }
      },
      argument.target);
}

/// Takes the words of an argument that takes the rest out of `words`.
void split_rest(std::vector<std::string>& words, const ArgumentList& list) {
  if (list.arguments().empty() || !list.arguments().back().takes_rest) return;
  const auto takes_value = [&](const std::string& word) {
    for (const Argument& argument : list.arguments()) {
      if (std::holds_alternative<bool*>(argument.target)) continue;
      for (const std::string& name : names_of(argument)) {
        if (name == word) return true;
      }
    }
    return false;
  };
  auto at = words.begin();
  while (at != words.end() && is_flag_name(*at) && *at != "--") at += takes_value(*at) && at + 1 != words.end() ? 2 : 1;
  auto& rest = *std::get<std::vector<std::string>*>(list.arguments().back().target);
  rest.assign(at != words.end() && *at == "--" ? at + 1 : at, words.end());
  words.erase(at, words.end());
}

[[noreturn]] void refuse(const std::string& text) { throw ConfigError(text, ""); }

/// Words that no argument took.
void check_leftovers(const std::vector<std::string>& leftovers, const ArgumentList& list, const std::string& command) {
  std::vector<std::string> known = {"--help"};
  for (const Argument& argument : list.arguments()) {
    for (const std::string& name : names_of(argument)) {
      if (is_flag_name(name)) known.push_back(name);
    }
  }
  for (const std::string& word : leftovers) {
    const std::string see = cat("; see ", command, " --help");
    if (!is_flag_name(word)) refuse(cat("unexpected argument ", quote_json(word), see));
    const std::string name = word.substr(0, word.find('='));
    const std::string nearest = nearest_name(name, known);
    refuse(cat("unknown option ", name, nearest.empty() ? see : cat("; did you mean ", nearest, "?")));
  }
}

void check_values(const std::vector<std::pair<const Argument*, CLI::Option*>>& declared, const std::string& command) {
  for (const auto& [argument, option] : declared) {
    if (argument->takes_rest ? std::get<std::vector<std::string>*>(argument->target)->empty()
                             : argument->required && option->count() == 0) {
      refuse(cat(argument->name, " is missing: ", argument->doc, "; see ", command, " --help"));
    }
    if (argument->choices.empty() || option->count() == 0) continue;
    for (const std::string& value : option->results()) {
      if (std::find(argument->choices.begin(), argument->choices.end(), value) == argument->choices.end()) {
        refuse(cat(argument->name, ": ", quote_json(value), " is not one of its values; ",
                   suggest_name(value, argument->choices)));
      }
    }
  }
}

/// Which value is no number where one is expected, for a person; empty if none is found. CLI11 says only "Could not
/// convert".
std::string unreadable_number(const std::vector<std::pair<const Argument*, CLI::Option*>>& declared) {
  const auto reads_as = [](const std::string& text, auto value) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return error == std::errc() && end == text.data() + text.size();
  };
  for (const auto& [argument, option] : declared) {
    const bool is_real = std::holds_alternative<double*>(argument->target);
    const bool is_whole = std::holds_alternative<std::int64_t*>(argument->target) ||
                          std::holds_alternative<std::optional<std::int64_t>*>(argument->target);
    for (const std::string& text : option->results()) {
      if (is_real && !reads_as(text, double{}))
        return cat(argument->name, ": expected a number, got ", quote_json(text));
      if (is_whole && !reads_as(text, std::int64_t{}))
        return cat(argument->name, ": expected a whole number, got ", quote_json(text));
    }
  }
  return "";
}

/// The help of one command: how to call it, then its arguments in the order of their declaration.
std::string command_help(const Subcommand& subcommand, const std::string& command, const ArgumentList& list) {
  std::string usage = "usage: " + command;
  std::vector<std::pair<std::string, std::string>> rows;
  for (const Argument& argument : list.arguments()) {
    std::string left = argument.name;
    if (is_flag_name(argument.name)) {
      if (!argument.placeholder.empty()) left += " " + argument.placeholder;
    } else {
      const bool takes_several = std::holds_alternative<std::vector<std::string>*>(argument.target);
      usage += argument.required ? cat(" ", argument.name) : cat(" [", argument.name, "]");
      if (takes_several) usage += " ...";
    }
    rows.emplace_back(std::move(left), argument.doc + default_text(argument));
  }
  rows.emplace_back("--help", "print this");
  constexpr std::size_t kWidestLeft = 30;
  constexpr int kWidth = 110;
  std::size_t columns = 0;
  for (const auto& [left, right] : rows) {
    if (left.size() <= kWidestLeft) columns = std::max(columns, left.size());
  }
  std::string out = cat(usage, " [options]\n\n", subcommand.summary, "\n\n");
  const int indent = static_cast<int>(columns) + 4;
  const std::string margin(columns + 4, ' ');
  for (const auto& [left, right] : rows) {
    // A long name takes a line of its own.
    std::string lead = "  " + left;
    lead += left.size() > columns ? "\n" + margin : std::string(columns - left.size() + 2, ' ');
    out += lead + wrap_text(right, indent, indent, kWidth) + "\n";
  }
  return out;
}

/// The list of subcommands.
std::string program_help(const std::string& program, const std::vector<Subcommand>& subcommands) {
  std::string out = cat("usage: ", program, " COMMAND ...\n\ncommands:\n");
  std::size_t columns = 0;
  for (const Subcommand& subcommand : subcommands) columns = std::max(columns, subcommand.name.size());
  for (const Subcommand& subcommand : subcommands) {
    out += cat("  ", subcommand.name, std::string(columns - subcommand.name.size() + 2, ' '), subcommand.summary, "\n");
  }
  return out + cat("\n", program, " COMMAND --help explains a command",
                   program.find(' ') == std::string::npos ? cat("; ", program, " --version prints the version") : "",
                   "\n");
}

const Subcommand& find_subcommand(const std::string& name, const std::string& program,
                                  const std::vector<Subcommand>& subcommands) {
  std::vector<std::string> names;
  for (const Subcommand& subcommand : subcommands) {
    if (subcommand.name == name) return subcommand;
    names.push_back(subcommand.name);
  }
  refuse(cat(is_flag_name(name) ? "unknown option " : "unknown command ", name, "; ", suggest_name(name, names),
             " see ", program, " --help"));
}

int run_subcommand(const Subcommand& subcommand, const std::string& program, std::vector<std::string> words,
                   Registry& registry, std::ostream& out) {
  const std::string command = cat(program, " ", subcommand.name);
  CLI::App app(subcommand.summary, command);
  app.allow_extras(true);
  ArgumentList list;
  subcommand.configure(list);
  const std::string help = command_help(subcommand, command, list);  // before the parse changes the defaults
  std::vector<std::pair<const Argument*, CLI::Option*>> declared;
  for (const Argument& argument : list.arguments()) declared.emplace_back(&argument, declare(app, argument));
  split_rest(words, list);
  std::reverse(words.begin(), words.end());  // CLI11 takes words from the back
  try {
    app.parse(std::move(words));
  } catch (const CLI::CallForHelp&) {
    out << help;
    return kExitOk;
  } catch (const CLI::ConversionError& refused) {
    const std::string text = unreadable_number(declared);
    refuse(cat(text.empty() ? refused.what() : text, "; see ", command, " --help"));
  } catch (const CLI::ParseError& refused) {
    refuse(cat(refused.what(), "; see ", command, " --help"));
  }
  check_leftovers(app.remaining(), list, command);
  check_values(declared, command);
  return subcommand.run(registry, out);
}

// Finds the command that the words name, in a group of commands if it is one, and runs it. `who` becomes its name.
int run_words(std::string& who, const std::vector<std::string>& words, const std::vector<Subcommand>& subcommands,
              Registry& registry, std::ostream& out, std::ostream& err) {
  if (words.empty()) {
    err << program_help(who, subcommands);
    return kExitUsage;
  }
  if (words[0] == "--help" || words[0] == "-h" || (words[0] == "help" && words.size() == 1)) {
    out << program_help(who, subcommands);
    return kExitOk;
  }
  if (words[0] == "help") {  // help train: train --help
    std::vector<std::string> asked(words.begin() + 1, words.end());
    asked.emplace_back("--help");
    return run_words(who, asked, subcommands, registry, out, err);
  }
  const Subcommand& subcommand = find_subcommand(words[0], who, subcommands);
  const std::string program = who;
  who += " " + subcommand.name;
  std::vector<std::string> rest(words.begin() + 1, words.end());
  if (!subcommand.children.empty()) return run_words(who, rest, subcommand.children, registry, out, err);
  return run_subcommand(subcommand, program, std::move(rest), registry, out);
}

/// The exit code of an error, after its message.
int report(const std::string& who, const std::string& text, int code, std::ostream& err) {
  err << who << ": " << text << "\n";
  return code;
}

}  // namespace

int run_command_line(const std::string& program, const std::vector<std::string>& arguments,
                     const std::vector<Subcommand>& subcommands, Registry& registry, std::ostream& out,
                     std::ostream& err) {
  std::string who = program;
  int code = kExitOk;
  try {
    if (!arguments.empty() && arguments[0] == "--version") {
      out << program << " " << kVersion << "\n";
      return kExitOk;
    }
    code = run_words(who, arguments, subcommands, registry, out, err);
    out.flush();
    if (code == kExitOk && !out) code = report(who, "standard output cannot be written", kExitRunError, err);
  } catch (const ConfigError& error) {
    code = report(who, error.what(), kExitUsage, err);
  } catch (const Stopped& error) {
    code = report(who, error.what(), stop_exit_code(), err);
  } catch (const IoError& error) {
    code = report(who, error.what(), error.code == EINTR && stop_requested() ? stop_exit_code() : kExitRunError, err);
  } catch (const InternalError& error) {
    code = report(who, cat("internal error, please report it: ", error.what()), kExitRunError, err);
  } catch (const Error& error) {
    code = report(who, error.what(), kExitRunError, err);
  } catch (const std::bad_alloc&) {
    code = report(who, "out of host memory; use a smaller model, micro-batch or memory limit", kExitRunError, err);
  } catch (const std::exception& error) {
    code = report(who, cat("internal error, please report it: ", error.what()), kExitRunError, err);
  }
  // An error that is not the stop's own is not hidden by it.
  return code == kExitOk && stop_requested() ? stop_exit_code() : code;
}

}  // namespace castor::strategy
