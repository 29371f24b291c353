// Renaming tensors on their way in or out: a list of rules, each an exact name or a regular expression.
//
// Delicate: two tensors must never end under one name without a word, and a name may be given to nothing; who applies
// the map to all names of a model gets an error for a collision.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace castor::formats {

/// One rule.
struct NameRule {
  std::string from;               ///< the whole name, or a regular expression (ECMAScript)
  bool is_regex = false;          ///< every match anywhere in the name is replaced
  std::optional<std::string> to;  ///< replacement, with $1 ... for groups of a regular expression; none: left out
  std::string place;              ///< where it was written, "map.yaml:3", for errors
};

/// Rules in order, each applied to what the ones before made of the name.
class NameMap {
 public:
  NameMap() = default;
  /// Throws ConfigError for a rule that is no regular expression.
  explicit NameMap(std::vector<NameRule> rules);

  /// The new name, or nothing if a rule leaves the tensor out. Throws ConfigError if the name becomes empty, or is so
  /// long (4096 bytes) that a regular expression should not see it.
  std::optional<std::string> apply(std::string_view name) const;
  bool empty() const { return rules_ == nullptr; }

 private:
  struct Compiled;
  std::shared_ptr<const Compiled> rules_;  // <regex> stays in the source file
};

}  // namespace castor::formats
