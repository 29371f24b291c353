// How optimizers read their configs: one `describe` a config names every option with its doc and its conditions; the
// constructor checks the conditions through the same function that a config file is checked through.
#pragma once

#include <string>
#include <string_view>

#include "core/base/error.h"

namespace castor::autograd {

/// A visitor that only tests conditions: the first that does not hold is a ConfigError.
class ConditionChecker {
 public:
  explicit ConditionChecker(std::string_view type) : type_(type) {}
  template <class T>
  void field(std::string_view, T&, std::string_view) {}
  void refuse(std::string_view, std::string_view) {}
  template <class T>
  void retired(std::string_view, const T&, std::string_view) {}
  template <class Condition>
  void check(std::string_view name, Condition&& holds, std::string_view text) {
    if (!holds()) throw ConfigError(cat(type_, ": ", name, " ", text), std::string(name));
  }

 private:
  std::string_view type_;
};

/// `config` itself, when the conditions its `describe` states hold. Throws ConfigError naming `type` and the option
/// otherwise.
template <class Config>
const Config& checked(std::string_view type, const Config& config) {
  ConditionChecker checker(type);
  Config copy = config;
  describe(checker, copy);
  return config;
}

}  // namespace castor::autograd
