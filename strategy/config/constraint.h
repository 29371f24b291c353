// What a config field demands of its value beyond its type: bounds, a list of words, presence.
//
// Constraints are data, not code, so that the same declaration refuses a bad value and tells the help what is good.
#pragma once

#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace castor::strategy {

/// Tag of `required`.
struct Required {};
/// The key must be given; there is no default.
inline constexpr Required required{};  // NOLINT(readability-identifier-naming): a word of the describe language

/// One demand. Made by the functions below.
struct Constraint {
  enum class Kind {
    kRequired,
    kAtLeast,
    kAtMost,
    kMoreThan,
    kLessThan,
    kOneOf,
    kNonEmpty,
    kAllowInfinite,
    kRegistered,
    kOrName,
  };

  Constraint(Required) : kind(Kind::kRequired) {}
  explicit Constraint(Kind which, double at = 0) : kind(which), bound(at) {}

  /// For help and errors: ">= 1", "one of a, b"; empty where it adds nothing to read.
  std::string text() const;

  Kind kind;
  double bound = 0;                ///< of the comparisons
  std::vector<std::string> words;  ///< of one_of; of registered, its one name
};

/// Numbers: value >= bound. On lists, maps and optionals it holds for each number inside.
Constraint at_least(double bound);
/// Numbers: value <= bound.
Constraint at_most(double bound);
/// Numbers: value > bound.
Constraint more_than(double bound);
/// Numbers: value < bound.
Constraint less_than(double bound);
/// Strings: one of the words.
Constraint one_of(std::initializer_list<std::string_view> words);
/// Strings, lists and maps: at least one character or element.
Constraint non_empty();
/// Numbers: infinity is accepted, which is refused otherwise. NaN never is.
Constraint allow_infinite();
/// TypedConfig: `type` must be in the registry's table of this kind ("model", "dataset"), and the other keys must be
/// that type's options.
Constraint registered(std::string_view kind);
/// TypedConfig: a plain string is taken for {type: string}.
Constraint or_name();

using Constraints = std::span<const Constraint>;

/// The first constraint of a kind, or null.
const Constraint* find_constraint(Constraints constraints, Constraint::Kind kind);

}  // namespace castor::strategy
