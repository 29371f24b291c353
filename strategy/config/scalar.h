// What a plain (unquoted) YAML scalar means, by YAML 1.2's core schema.
//
// yaml-cpp leaves scalars as text, and its own conversions follow YAML 1.1, where `no` is false and `010` is eight.
// Here `no` is a string, `1e-3` a float, and an integer that 64 bits cannot hold is an error instead of a rounded
// float.
#pragma once

#include <string_view>

#include "strategy/config/node.h"

namespace castor::strategy {

/// The value of a plain scalar: null (empty, ~, null), bool (true, false), int (decimal, 0o17, 0x1F), float (1.5, 1e-3,
/// .inf, .nan), else a string. Capitalised words (True, NULL) count as well.
/// Throws ConfigError for an integer beyond 64 signed bits.
ConfigNode resolve_plain_scalar(std::string_view text);

}  // namespace castor::strategy
