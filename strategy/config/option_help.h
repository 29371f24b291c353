// The options of a config struct as a table for people: name, type, default, what it does.
#pragma once

#include <string>
#include <vector>

#include "strategy/config/codec.h"

namespace castor::strategy {

/// One line of the table.
struct OptionRow {
  enum class Status { kOption, kRefused, kRetired };
  std::string name;  ///< dotted for fields of structs inside, "layers[].width" inside a list
  std::string type;
  std::string default_text;  ///< as YAML; "required" where there is none
  std::string doc;           ///< with the constraints; for refused and retired keys the reason
  Status status = Status::kOption;
};

/// The rows of a struct, fields of structs inside included, in the order of `describe`.
std::vector<OptionRow> option_rows(const StructCodec& codec);

/// The rows as text: aligned columns, docs wrapped at `width` columns; refused and retired keys below, each with its
/// reason.
std::string format_options(const std::vector<OptionRow>& rows, int width = 110);

/// Wraps `text` at spaces; lines after the first begin with `indent` spaces.
///   width   columns, the first line's `used` among them
std::string wrap_text(const std::string& text, int used, int indent, int width);

}  // namespace castor::strategy
