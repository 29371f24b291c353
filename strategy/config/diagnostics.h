// All mistakes of a config in one message, instead of the first one only.
//
// Checks add to a Diagnostics and go on; whoever started the check throws at the end. So a user fixes a config in one
// round, and nothing was allocated or trained when the message comes.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "strategy/config/node.h"

namespace castor::strategy {

/// One mistake: where in the config, where in which file, and what to do about it.
struct Mistake {
  std::string path;    ///< "train_cfg.max_epochs"; empty for the whole config
  std::string source;  ///< "gpt.yaml:12"; empty where nothing was written, as for a missing key
  std::string text;
};

/// Collects mistakes.
class Diagnostics {
 public:
  /// Adds a mistake. The same one added twice is kept once.
  void add(std::string path, const SourceMark& mark, std::string text);
  bool empty() const { return mistakes_.empty(); }
  std::size_t size() const { return mistakes_.size(); }
  const std::vector<Mistake>& mistakes() const { return mistakes_; }
  /// One line a mistake, after a line that counts them. Very long lists are cut and say how many are left.
  ///   what   what was checked, as "gpt.yaml"; may be empty
  std::string report(std::string_view what) const;
  /// Throws one ConfigError with the report, whose path is that of the first mistake. Does nothing if there is none.
  void throw_if_any(std::string_view what) const;

 private:
  std::vector<Mistake> mistakes_;
};

/// The candidate that `name` most likely stands for: fewest typing errors (insert, delete, replace, swap of neighbours;
/// case and '-' against '_' count nothing), or empty if all are too far to be meant. Ties go to the first.
std::string nearest_name(std::string_view name, std::span<const std::string> candidates);

/// `did you mean "x"?`, or else `known: "a", "b"`, or else the empty string: what to append to "unknown ...".
std::string suggest_name(std::string_view name, std::span<const std::string> candidates);

}  // namespace castor::strategy
