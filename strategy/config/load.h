// A config file, with what it inherits and what the command line overrides, as one value tree.
//
// The language is the peers': `_base_` names files to start from, `_delete_: true` replaces an inherited map instead of
// extending it, `{{$NAME:default}}` takes a value from the environment, `--cfg-options a.b=c` overrides. Delicate: the
// order is fixed (environment, then bases, then the file, then overrides), and every value keeps the mark of the line
// that won.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "strategy/config/diagnostics.h"
#include "strategy/config/node.h"

namespace castor::strategy {

/// Loads a .yaml, .yml or .json file.
///   path       relative to the working directory; a path in `_base_` is relative to the file that names it
///   overrides  as for `apply_overrides`
/// Text replaced before parsing, in lines that are no comments: `{{$NAME}}` and `{{$NAME:default}}` by the environment
/// variable, `{{fileDirname}}`, `{{fileBasename}}`, `{{fileBasenameNoExtension}}` and `{{fileExtname}}` by parts of the
/// file's own path.
/// Returns a map. Throws ConfigError for a file that cannot be read or parsed, a circle of bases, a key that two bases
/// set, a variable that is not set and has no default, and overrides that do not fit (all of them at once).
ConfigNode load_config(const std::string& path, const std::vector<std::string>& overrides = {});

/// Lays `changes` over `base` as an inheriting file does: maps are merged, everything else is replaced, a map with
/// `_delete_: true` replaces. Mistakes (a map over a scalar) are added to `diagnostics`.
void merge_config(ConfigNode& base, ConfigNode changes, Diagnostics& diagnostics);

/// Applies `a.b=c` overrides in order. A segment that meets a list is an index from 0; missing maps on the way are
/// made. Values: what begins with `[`, `{` or a quote is YAML; other text is a scalar (`1e-3`, `true`, `null`, `None`,
/// else a string), or, where it has commas, a list of scalars. A map merges with the map it meets. Mistakes are added
/// to `diagnostics`.
void apply_overrides(ConfigNode& config, const std::vector<std::string>& overrides, Diagnostics& diagnostics);

/// The text of a config file after its `{{...}}` are replaced.
///   path   of the file, for the file variables and for errors
/// Throws ConfigError.
std::string substitute_config_variables(std::string_view text, const std::string& path);

}  // namespace castor::strategy
