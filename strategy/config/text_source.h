// YAML or JSON text to a value tree that knows the line of every key.
//
// Configs come from other people, so reading trusts nothing: UTF-8 only, no key twice, bounded size, depth and number
// of values, aliases expanded under the same bound. Every refusal is a ConfigError that names file and line.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "strategy/config/node.h"

namespace castor::strategy {

/// Bounds on one config text.
struct ConfigTextLimits {
  std::size_t max_bytes = std::size_t{4} << 20;
  int max_depth = 64;              ///< maps and lists inside each other
  std::size_t max_values = 50000;  ///< after aliases are expanded
};

/// Reads YAML 1.2's core schema with anchors, aliases and merge keys (`<<`). One document; text without any value gives
/// null. Keys are scalars and become strings.
///   name   what errors and marks call the text
/// Throws ConfigError.
ConfigNode read_yaml_text(std::string_view text, const std::string& name, const ConfigTextLimits& limits = {});

/// Reads one JSON document, strictly. Throws ConfigError.
ConfigNode read_json_text(std::string_view text, const std::string& name, const ConfigTextLimits& limits = {});

/// Throws ConfigError "<name>:<line>: <text>".
[[noreturn]] void refuse_config_text(const std::string& name, int line, const std::string& text);

/// Throws ConfigError unless the text is within max_bytes, UTF-8, and free of NUL bytes.
void check_config_bytes(std::string_view text, const std::string& name, const ConfigTextLimits& limits);

}  // namespace castor::strategy
