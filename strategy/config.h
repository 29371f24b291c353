// Configs: from a file to a checked struct, and back to text. This header is what users of the mechanism include.
//
//   ConfigNode tree = load_config("gpt.yaml", {"train_cfg.max_epochs=3"});      // config/load.h
//   auto run = parse_config<RunConfig>(tree, "gpt.yaml", &registry);            // all mistakes in one ConfigError
//   std::string text = to_yaml(effective_config(run, &registry));               // every option, defaults included
//
// A config struct declares its fields once (config/field.h). Parts chosen by a `type` key are TypedConfig members,
// checked against the registry's tables (type_table.h) during the same parse.
#pragma once

#include <string>
#include <string_view>

#include "strategy/config/codec.h"
#include "strategy/config/diagnostics.h"
#include "strategy/config/field.h"
#include "strategy/config/load.h"
#include "strategy/config/node.h"
#include "strategy/config/option_help.h"
#include "strategy/config/typed_config.h"

namespace castor::strategy {

/// Reads a map into `out`, on top of the values that it has. Mistakes go to `diagnostics`; after one, `out` may be half
/// filled.
///   types  checks TypedConfig fields that are `registered`; null leaves them unchecked
///   path   where `node` stands in the config
template <Described Config>
void parse_config(const ConfigNode& node, Config& out, Diagnostics& diagnostics, const TypeDirectory* types = nullptr,
                  const std::string& path = "") {
  ParseContext context{diagnostics, types};
  struct_codec_of<Config>().parse(node, path, {}, context, &out);
}

/// Reads a map into a struct. Throws one ConfigError with all mistakes.
///   what   the config's name in the message, as "gpt.yaml"
template <Described Config>
Config parse_config(const ConfigNode& node, std::string_view what, const TypeDirectory* types = nullptr) {
  Config out;
  Diagnostics diagnostics;
  parse_config(node, out, diagnostics, types);
  diagnostics.throw_if_any(what);
  return out;
}

/// Every option of the struct with its value, as a map that parses back to it.
///   types  adds the defaults of TypedConfig fields that are `registered`
template <Described Config>
ConfigNode effective_config(const Config& config, const TypeDirectory* types = nullptr) {
  return struct_codec_of<Config>().dump(&config, {}, types);
}

/// The struct's options as a table.
template <Described Config>
std::string options_help(int width = 110) {
  return format_options(option_rows(struct_codec_of<Config>()), width);
}

}  // namespace castor::strategy
