// Random numbers in recorded work (core/device/backend.h, Recording): a recording repeats its kernels with the
// arguments they had, but each run of a training step draws other numbers. So a random op that gets one of these keys
// while it is recorded looks for its key in the device's memory, where each run finds its own.
#pragma once

#include <vector>

#include "core/base/philox.h"
#include "core/tensor/tensor.h"

namespace castor {

class RecordedKeys {
 public:
  /// Room for `most` keys on `device`.
  RecordedKeys(Device device, std::int64_t most);

  /// Gives a key of the run that is being recorded a place. False if it has one. Throws InternalError for more than
  /// there is room for.
  bool add(RandomKey key);
  /// Where it lies on the device; null for a key that was not added.
  const RandomKey* find(RandomKey key) const;
  /// The keys of the run that comes next on the device's queue, in the order of `add`.
  void write(const std::vector<RandomKey>& keys);

 private:
  Tensor places_;                // i64 [most, 2]
  std::vector<RandomKey> keys_;  // of the run that was recorded
};

/// While it lives, this thread's random ops find their keys in `keys`.
class RecordedKeysScope {
 public:
  explicit RecordedKeysScope(const RecordedKeys& keys);
  ~RecordedKeysScope();
  RecordedKeysScope(const RecordedKeysScope&) = delete;
  RecordedKeysScope& operator=(const RecordedKeysScope&) = delete;

 private:
  const RecordedKeys* previous_;
};

/// For kernels' launches: where this thread's scope has the key; null without a scope or place.
const RandomKey* recorded_place(RandomKey key);

}  // namespace castor
