// Texts between ranks, and failures that all of them learn of.
#include "strategy/checkpoint/save_group.h"

#include "dist/values.h"

namespace castor::strategy {

std::vector<std::string> SaveGroup::gather(const std::string& text) {
  return dist::all_gather_object(ranks_, text, "texts of a save");
}

std::string SaveGroup::from_main(const std::string& text) { return gather(is_main() ? text : std::string()).front(); }

void SaveGroup::together(const std::function<void()>& action) {
  if (ranks_ == nullptr) return action();
  std::exception_ptr failure;
  std::string text;
  try {
    action();
  } catch (const std::exception& error) {
    failure = std::current_exception();
    text = cat("rank ", rank(), ": ", error.what());
  }
  const std::vector<std::string> failures = gather(text);
  if (failure != nullptr) std::rethrow_exception(failure);
  for (const std::string& other : failures) {
    if (!other.empty()) throw Error(cat("the checkpoint was not saved, ", other));
  }
}

}  // namespace castor::strategy
