// The file behind --map: how tensors are renamed on their way in or out of a checkpoint, as YAML or JSON.
//
//   blocks.0.weight: layers.0.weight          a map: these very names
//
//   - {regex: '^module\.', to: ''}            or a list of rules, in order
//   - {name: head.weight, to: lm_head.weight}
//   - {regex: '^ema\.', to: null}             left out
#pragma once

#include <string>

#include "core/base/file_system.h"
#include "formats/name_map.h"

namespace castor::strategy {

/// Reads a table of names: .json as JSON, anything else as YAML. Throws ConfigError with file and line for anything but
/// the forms above, IoError.
formats::NameMap load_name_map(const std::string& path, FileSystem& files = posix_file_system());

}  // namespace castor::strategy
