// The places of a recording's keys; see recorded_keys.h.
#include "core/ops/recorded_keys.h"

#include <algorithm>
#include <utility>

#include "core/base/error.h"

namespace castor {
namespace {

thread_local const RecordedKeys* innermost = nullptr;

bool same(RandomKey a, RandomKey b) { return a.key == b.key && a.stream == b.stream; }

}  // namespace

static_assert(sizeof(RandomKey) == 2 * sizeof(std::int64_t), "a row of places_ is a key");

RecordedKeys::RecordedKeys(Device device, std::int64_t most) : places_(Tensor::empty({most, 2}, DType::i64, device)) {}

bool RecordedKeys::add(RandomKey key) {
  if (std::any_of(keys_.begin(), keys_.end(), [&](RandomKey known) { return same(known, key); })) return false;
  if (static_cast<std::int64_t>(keys_.size()) == places_.size(0)) {
    throw InternalError(cat("recording: more than ", places_.size(0), " streams of random numbers in one step"));
  }
  keys_.push_back(key);
  return true;
}

const RandomKey* RecordedKeys::find(RandomKey key) const {
  const auto found = std::find_if(keys_.begin(), keys_.end(), [&](RandomKey known) { return same(known, key); });
  if (found == keys_.end()) return nullptr;
  return static_cast<const RandomKey*>(places_.view().data) + (found - keys_.begin());
}

void RecordedKeys::write(const std::vector<RandomKey>& keys) {
  if (keys.size() != keys_.size())
    throw InternalError(cat("recording: ", keys.size(), " keys for ", keys_.size(), " places"));
  if (!keys.empty())
    places_.narrow(0, 0, static_cast<std::int64_t>(keys.size()))
        .copy_from_host(keys.data(), keys.size() * sizeof(keys[0]));
}

RecordedKeysScope::RecordedKeysScope(const RecordedKeys& keys) : previous_(std::exchange(innermost, &keys)) {}
RecordedKeysScope::~RecordedKeysScope() { innermost = previous_; }

const RandomKey* recorded_place(RandomKey key) { return innermost == nullptr ? nullptr : innermost->find(key); }

}  // namespace castor
