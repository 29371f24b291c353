// Declarations of command line arguments.
#include "strategy/cli/arguments.h"

#include <utility>

namespace castor::strategy {

void ArgumentList::positional(std::string name, std::string& target, std::string doc) {
  add({std::move(name), "", std::move(doc), &target, true, "", {}});
}

void ArgumentList::positional(std::string name, std::vector<std::string>& target, std::string doc) {
  add({std::move(name), "", std::move(doc), &target, true, "", {}});
}

void ArgumentList::optional_positional(std::string name, std::optional<std::string>& target, std::string doc) {
  add({std::move(name), "", std::move(doc), &target, false, "", {}});
}

void ArgumentList::rest(std::string name, std::vector<std::string>& target, std::string doc) {
  add({std::move(name), "", std::move(doc), &target, true, "", {}, true});
}

void ArgumentList::flag(std::string name, bool& target, std::string doc) {
  add({std::move(name), "", std::move(doc), &target, false, "", {}});
}

void ArgumentList::option_with_implied(std::string name, std::optional<std::string>& target, std::string implied,
                                       std::string placeholder, std::string doc) {
  add({std::move(name), std::move(placeholder), std::move(doc), &target, false, std::move(implied), {}});
}

void ArgumentList::choice(std::string name, std::optional<std::string>& target, std::vector<std::string> choices,
                          std::string doc) {
  std::string placeholder;
  for (const std::string& word : choices) placeholder += (placeholder.empty() ? "" : "|") + word;
  add({std::move(name), std::move(placeholder), std::move(doc), &target, false, "", std::move(choices)});
}

}  // namespace castor::strategy
