// The thread's sink of buffer updates.
#include "autograd/nn/buffer_update.h"

#include <utility>

#include "autograd/recompute.h"

namespace castor::autograd {
namespace {
thread_local BufferUpdateSink* current_sink = nullptr;
}

std::vector<BufferUpdate> PendingBufferUpdates::take() { return std::exchange(updates_, {}); }

void PendingBufferUpdates::apply() {
  for (const BufferUpdate& update : take()) update.owner->apply_update(update.statistics);
}

BufferUpdateScope::BufferUpdateScope(BufferUpdateSink& sink) : previous_(std::exchange(current_sink, &sink)) {}
BufferUpdateScope::~BufferUpdateScope() { current_sink = previous_; }

void post_update(BufferUpdate update) {
  if (is_recomputing()) return;
  if (current_sink != nullptr) return current_sink->receive(std::move(update));
  update.owner->apply_update(update.statistics);
}

}  // namespace castor::autograd
