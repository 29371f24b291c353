// Buffers that follow the data (BatchNorm's running statistics) change by small messages, so that a strategy can
// collect those of every rank and apply them in the order of the micro-batches: then a buffer's bits do not depend on
// how the window was split.
//
// A module in training calls `post_update` once a forward. Without a sink the update is applied at once: a plain loop
// need not know of any of this. Delicate: forward reads no buffer that it updates, so updating later changes nothing
// else; and a segment that is run again in backward posts nothing.
#pragma once

#include <vector>

#include "autograd/nn/module.h"

namespace castor::autograd {

/// A module with buffers that follow the data.
class BufferOwner {
 public:
  virtual ~BufferOwner() = default;
  /// Changes the buffers by what one micro-batch gave.
  ///   statistics  as the module posted them, possibly on another rank: same number, shapes and dtypes
  virtual void apply_update(const std::vector<Tensor>& statistics) = 0;
};

/// What one forward of one module in one micro-batch asks for.
struct BufferUpdate {
  BufferOwner* owner = nullptr;
  const Module* module = nullptr;  ///< the same object: its name is the key across ranks
  std::vector<Tensor> statistics;
};

/// Receives the updates of this thread while a scope has it installed.
class BufferUpdateSink {
 public:
  virtual ~BufferUpdateSink() = default;
  virtual void receive(BufferUpdate update) = 0;
};

/// Keeps updates in order of arrival until someone applies them.
class PendingBufferUpdates final : public BufferUpdateSink {
 public:
  void receive(BufferUpdate update) override { updates_.push_back(std::move(update)); }
  const std::vector<BufferUpdate>& updates() const { return updates_; }
  /// Hands the updates over and forgets them.
  std::vector<BufferUpdate> take();
  /// Applies all in order of arrival and forgets them.
  void apply();

 private:
  std::vector<BufferUpdate> updates_;
};

/// Sends this thread's updates to `sink` while the scope lives.
class BufferUpdateScope {
 public:
  explicit BufferUpdateScope(BufferUpdateSink& sink);
  ~BufferUpdateScope();
  BufferUpdateScope(const BufferUpdateScope&) = delete;
  BufferUpdateScope& operator=(const BufferUpdateScope&) = delete;

 private:
  BufferUpdateSink* previous_;
};

/// Sends an update to the thread's sink, or applies it at once when there is none. Does nothing while a segment is
/// recomputed.
void post_update(BufferUpdate update);

}  // namespace castor::autograd
