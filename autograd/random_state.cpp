// Stream names by hashing; see random_state.h.
#include "autograd/random_state.h"

#include <utility>

namespace castor::autograd {
namespace {

thread_local RandomLogScope* innermost_log = nullptr;

}  // namespace

RandomLogScope::RandomLogScope(Drawn drawn) : drawn_(std::move(drawn)), previous_(std::exchange(innermost_log, this)) {}
RandomLogScope::~RandomLogScope() { innermost_log = previous_; }

void RandomState::begin(std::uint64_t seed, std::uint64_t step, std::uint64_t k) {
  seed_ = seed;
  step_ = step;
  micro_batch_ = k;
  calls_.clear();
}

RandomKey RandomState::next(std::uint64_t module) {
  const std::uint64_t call = calls_[module]++;
  const RandomKey key{hash_combine(hash_combine(seed_, step_), micro_batch_), hash_combine(module, call)};
  if (innermost_log != nullptr) innermost_log->drawn_(module, key);
  return key;
}

RandomState& random_state() {
  thread_local RandomState state;
  return state;
}

}  // namespace castor::autograd
