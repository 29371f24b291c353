// The rules of the source tree that a compiler does not check: who may include whom, where vendors' headers may appear,
// no preprocessor conditionals, telling file names. The tables stand in floors.cpp; README.md explains the floors.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace castor::style {

/// One broken rule at one place.
struct Violation {
  std::string file;  ///< relative to the root
  int line;          ///< 1-based; 0 when the file's name or place is meant
  std::string rule;  ///< short name of the rule, such as "floors"
  std::string text;  ///< what was found and what to do
};

/// What a check of a tree saw.
struct Report {
  int files = 0;  ///< sources read; 0 means that the root was wrong
  std::vector<Violation> violations;
};

/// Reads every source under the floors, samples and tests of `root`.
/// Throws std::filesystem::filesystem_error if the tree cannot be read.
Report check_tree(const std::filesystem::path& root);

}  // namespace castor::style
