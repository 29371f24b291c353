// Which random numbers a module draws now. A stream is named by (seed, step, micro-batch k, the module's name, how
// often that module has drawn in this micro-batch), so a mask does not depend on ranks, on other modules, or on whether
// the forward runs a second time (recompute).
#pragma once

#include <cstdint>
#include <functional>
#include <map>

#include "core/base/philox.h"

namespace castor::autograd {

class RandomState {
 public:
  /// Starts micro-batch `k` of global step `step`: call numbers begin at 0 again.
  void begin(std::uint64_t seed, std::uint64_t step, std::uint64_t k);
  /// The next stream of the module whose name hashes to `module`.
  RandomKey next(std::uint64_t module);

  std::uint64_t seed() const { return seed_; }
  std::uint64_t step() const { return step_; }

 private:
  std::uint64_t seed_ = 0;
  std::uint64_t step_ = 0;
  std::uint64_t micro_batch_ = 0;
  std::map<std::uint64_t, std::uint64_t> calls_;
};

/// While it lives, `drawn` is told of each stream that a state of this thread names: the module's hash and the key.
class RandomLogScope {
 public:
  using Drawn = std::function<void(std::uint64_t module, RandomKey key)>;
  explicit RandomLogScope(Drawn drawn);
  ~RandomLogScope();
  RandomLogScope(const RandomLogScope&) = delete;
  RandomLogScope& operator=(const RandomLogScope&) = delete;

 private:
  friend class RandomState;
  Drawn drawn_;
  RandomLogScope* previous_;
};

/// This thread's state. Copy it to replay a stretch of code with the same numbers.
RandomState& random_state();

}  // namespace castor::autograd
