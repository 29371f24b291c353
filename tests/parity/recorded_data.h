// Where the recorded numbers of the parity tests lie, and how a recorded map of options becomes the part of a config
// that a registry builds from.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

#include "core/base/json.h"
#include "strategy/config/text_source.h"
#include "strategy/config/typed_config.h"

namespace castor::test {

/// A file of tests/parity/data: under CASTOR_TEST_DATA, or in the tree above the working directory. Throws
/// std::runtime_error if it is in neither.
inline Json recorded_file(const std::string& name) {
  if (const char* folder = std::getenv("CASTOR_TEST_DATA")) {
    return read_json_file((std::filesystem::path(folder) / name).string());
  }
  for (std::filesystem::path at = std::filesystem::current_path();; at = at.parent_path()) {
    const std::filesystem::path file = at / "tests" / "parity" / "data" / name;
    if (std::filesystem::exists(file)) return read_json_file(file.string());
    if (at == at.parent_path()) break;
  }
  throw std::runtime_error("tests/parity/data/" + name +
                           " is neither above the working directory nor under CASTOR_TEST_DATA");
}

/// `{type: ..., options}` as a config would hold it.
inline strategy::TypedConfig typed_config(const Json& options) {
  strategy::TypedConfig typed(options.at("type").get<std::string>());
  typed.node = strategy::read_json_text(dump_json(options), typed.type);
  return typed;
}

}  // namespace castor::test
