// Rules over <regex>. Delicate: the standard library matches by recursion, so the length of names is bounded.
#include "formats/name_map.h"

#include <regex>

#include "core/base/error.h"
#include "core/base/file_error.h"

namespace castor::formats {

struct NameMap::Compiled {
  struct Rule {
    NameRule rule;
    std::optional<std::regex> regex;
  };
  std::vector<Rule> rules;
};

NameMap::NameMap(std::vector<NameRule> rules) {
  if (rules.empty()) return;
  auto compiled = std::make_shared<Compiled>();
  for (NameRule& rule : rules) {
    std::optional<std::regex> regex;
    if (rule.from.empty())
      throw ConfigError(cat(rule.place, ": expected a name or an expression, got an empty text"), "");
    if (rule.is_regex) {
      try {
        regex.emplace(rule.from);
      } catch (const std::regex_error& error) {
        throw ConfigError(cat(rule.place, ": ", quote_name(rule.from), " is no regular expression: ", error.what()),
                          "");
      }
    }
    compiled->rules.push_back({std::move(rule), std::move(regex)});
  }
  rules_ = std::move(compiled);
}

std::optional<std::string> NameMap::apply(std::string_view name) const {
  constexpr std::size_t kMaxNameBytes = 4096;
  std::string current(name);
  if (rules_ == nullptr) return current;
  for (const Compiled::Rule& rule : rules_->rules) {
    if (rule.regex) {
      if (current.size() > kMaxNameBytes) {
        throw ConfigError(cat(rule.rule.place, ": the name ", quote_name(current), " has ", current.size(),
                              " bytes, expressions take at most ", kMaxNameBytes),
                          "");
      }
      if (!std::regex_search(current, *rule.regex)) continue;
      if (!rule.rule.to) return std::nullopt;
      current = std::regex_replace(current, *rule.regex, *rule.rule.to);
    } else {
      if (current != rule.rule.from) continue;
      if (!rule.rule.to) return std::nullopt;
      current = *rule.rule.to;
    }
    if (current.empty()) {
      throw ConfigError(cat(rule.rule.place, ": nothing is left of the name ", quote_name(name)), "");
    }
  }
  return current;
}

}  // namespace castor::formats
