// From the value tree of a config text to rules.
#include "strategy/name_map_file.h"

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/json.h"
#include "strategy/config/text_source.h"

namespace castor::strategy {
namespace {

constexpr std::size_t kMaxBytes = std::size_t{64} << 20;

[[noreturn]] void refuse(const ConfigNode& node, const std::string& what) {
  throw ConfigError(cat(node.mark().text(), ": ", what), "");
}

std::optional<std::string> target(const ConfigNode& node) {
  if (node.is_null()) return std::nullopt;
  if (!node.is_string()) refuse(node, cat("expected a name, or null to leave the tensor out, got ", node.describe()));
  return node.as_string();
}

formats::NameRule rule_of(const ConfigNode& node) {
  constexpr const char* kForm = "expected {name: OLD, to: NEW} or {regex: EXPRESSION, to: REPLACEMENT}";
  if (!node.is_map()) refuse(node, cat(kForm, ", got ", node.describe()));
  formats::NameRule rule;
  rule.place = node.mark().text();
  int froms = 0;
  bool has_to = false;
  for (const ConfigNode::Member& member : node.as_map()) {
    if (member.key == "to") {
      has_to = true;
      rule.to = target(member.value);
    } else if (member.key == "name" || member.key == "regex") {
      if (!member.value.is_string()) refuse(member.value, cat("expected a text, got ", member.value.describe()));
      ++froms;
      rule.from = member.value.as_string();
      rule.is_regex = member.key == "regex";
    } else {
      refuse(node, cat(kForm, ", got the key ", quote_json(member.key)));
    }
  }
  if (froms != 1 || !has_to) refuse(node, kForm);
  return rule;
}

}  // namespace

formats::NameMap load_name_map(const std::string& path, FileSystem& files) {
  const std::string text = read_text_file(path, kMaxBytes, files);
  ConfigTextLimits limits;
  limits.max_bytes = kMaxBytes;
  limits.max_values = std::size_t{4} << 20;
  const ConfigNode root =
      path.ends_with(".json") ? read_json_text(text, path, limits) : read_yaml_text(text, path, limits);
  std::vector<formats::NameRule> rules;
  if (root.is_map()) {
    for (const ConfigNode::Member& member : root.as_map()) {
      rules.push_back({member.key, false, target(member.value), member.mark.text()});
    }
  } else if (root.is_list()) {
    for (const ConfigNode& node : root.as_list()) rules.push_back(rule_of(node));
  } else {
    throw ConfigError(cat(path, ": expected a map of names, or a list of rules, got ", root.describe()), "");
  }
  return formats::NameMap(std::move(rules));
}

}  // namespace castor::strategy
