// Finds the preprocessor lines of a C++ source, so that the floors check reads includes and conditionals and nothing
// else. Delicate: a '#' at the start of a line inside a block comment or a raw string (YAML in a test) is no directive.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace castor::style {

/// One preprocessor line.
struct Directive {
  int line;              ///< 1-based
  std::string name;      ///< "include", "ifdef", ...
  std::string argument;  ///< the rest of the line, without surrounding blanks
};

/// All preprocessor lines of a C++ or CUDA source, in order.
std::vector<Directive> find_directives(std::string_view source);

/// The path an include names, without its quotes or brackets; empty when the line is not well formed.
std::string included_path(const Directive& include);

}  // namespace castor::style
