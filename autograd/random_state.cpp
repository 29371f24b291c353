// Stream names by hashing; see random_state.h.
#include "autograd/random_state.h"

namespace castor::autograd {

void RandomState::begin(std::uint64_t seed, std::uint64_t step, std::uint64_t k) {
  seed_ = seed;
  step_ = step;
  micro_batch_ = k;
  calls_.clear();
}

RandomKey RandomState::next(std::uint64_t module) {
  const std::uint64_t call = calls_[module]++;
  return {hash_combine(hash_combine(seed_, step_), micro_batch_), hash_combine(module, call)};
}

RandomState& random_state() {
  thread_local RandomState state;
  return state;
}

}  // namespace castor::autograd
