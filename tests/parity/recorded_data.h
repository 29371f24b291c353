// The recorded numbers of the parity tests as JSON, and how a recorded map of options becomes the part of a config that
// a registry builds from.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "core/base/json.h"
#include "strategy/config/text_source.h"
#include "strategy/config/typed_config.h"
#include "tests/support/recorded_path.h"

namespace castor::test {

/// A JSON file of tests/parity/data. Throws std::runtime_error if there is none.
inline Json recorded_file(const std::string& name) { return read_json_file(recorded_path(name)); }

/// `{type: ..., options}` as a config would hold it.
inline strategy::TypedConfig typed_config(const Json& options) {
  strategy::TypedConfig typed(options.at("type").get<std::string>());
  typed.node = strategy::read_json_text(dump_json(options), typed.type);
  return typed;
}

}  // namespace castor::test
