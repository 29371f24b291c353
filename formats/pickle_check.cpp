// Depth-first, with the size and height of every finished value remembered under its number.
#include "formats/pickle_check.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <set>

#include "core/base/error.h"
#include "core/base/file_error.h"

namespace castor::formats {
namespace {

std::size_t child_count(const PickleValue& value) {
  if (const auto* sequence = value.get_if<PickleSequence>()) return sequence->items.size();
  if (const auto* dict = value.get_if<PickleDict>()) return 2 * dict->items.size();
  if (value.get_if<PickleObject>() != nullptr) return 2;
  return 0;
}

// Null for what an inert object does not have.
const PickleValue* child_at(const PickleValue& value, std::size_t i) {
  if (const auto* sequence = value.get_if<PickleSequence>()) return sequence->items[i];
  if (const auto* dict = value.get_if<PickleDict>()) {
    return i % 2 == 0 ? dict->items[i / 2].first : dict->items[i / 2].second;
  }
  const auto* object = value.get_if<PickleObject>();
  return i == 0 ? object->args : object->state;
}

// A key that the dict has twice, or an empty text.
std::string repeated_key(const PickleDict& dict) {
  std::set<std::string_view> texts;
  std::set<std::int64_t> integers;
  for (const auto& [key, value] : dict.items) {
    const auto* text = key->get_if<std::string>();
    if (text != nullptr && !texts.insert(*text).second) return quote_name(*text);
    const auto* integer = key->get_if<std::int64_t>();
    if (integer != nullptr && !integers.insert(*integer).second) return cat(*integer);
  }
  return {};
}

struct Visit {
  const PickleValue* value;
  std::size_t next = 0;    // child
  std::size_t values = 1;  // on a walk of what was visited so far, this one counted
  int height = 0;
};

}  // namespace

std::string find_pickle_problem(const PickleTree& tree, std::size_t max_values) {
  enum class State : std::uint8_t { fresh, open, done };
  struct Finished {
    State state = State::fresh;
    std::uint8_t height = 0;
    std::uint32_t values = 0;
  };
  static_assert(kMaxPickleDepth < std::numeric_limits<std::uint8_t>::max());
  if (max_values > std::numeric_limits<std::uint32_t>::max()) throw InternalError("pickle: max_values is too large");
  SegmentedList<Finished> finished;
  for (std::size_t i = 0; i < tree.values.size(); ++i) finished.emplace_back();
  std::vector<Visit> path{{tree.root}};
  const std::string too_deep = cat("its values nest deeper than ", kMaxPickleDepth);
  finished[tree.root->number].state = State::open;
  while (!path.empty()) {
    Visit& top = path.back();
    if (top.next == child_count(*top.value)) {
      if (const auto* dict = top.value->get_if<PickleDict>()) {
        const std::string key = repeated_key(*dict);
        if (!key.empty()) return cat("a dict has the key ", key, " twice");
      }
      Finished& done = finished[top.value->number];
      done = {State::done, static_cast<std::uint8_t>(top.height), static_cast<std::uint32_t>(top.values)};
      path.pop_back();
      continue;
    }
    const PickleValue* child = child_at(*top.value, top.next);
    if (child == nullptr) {
      ++top.next;
      continue;
    }
    Finished& known = finished[child->number];
    if (known.state == State::open) return cat(child->kind_name(), " contains itself");
    if (known.state == State::fresh) {
      if (path.size() > kMaxPickleDepth) return too_deep;
      known.state = State::open;
      path.push_back({child});
      continue;
    }
    ++top.next;
    top.values += known.values;
    top.height = std::max(top.height, known.height + 1);
    if (top.values > max_values) return cat("it unfolds to more than ", max_values, " values");
    if (top.height > kMaxPickleDepth) return too_deep;
  }
  return {};
}

}  // namespace castor::formats
