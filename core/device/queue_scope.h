// Kernels on a queue beside the device's own: a thread says so for a stretch of its code, and the ops it runs there are
// launched on that queue.
//
// Delicate: only launches move. Memory is still handed out in the order of the device's own queue, so what runs inside
// may allocate nothing on the device, and what it reads must be complete for the side queue.
#pragma once

#include "core/device/backend.h"

namespace castor {

/// While it lives, this thread's launches on the queue's device go to `queue`, which must outlive it.
class QueueScope {
 public:
  explicit QueueScope(SideQueue& queue);
  ~QueueScope();
  QueueScope(const QueueScope&) = delete;
  QueueScope& operator=(const QueueScope&) = delete;

  /// The innermost scope's queue; null outside any.
  static SideQueue* current();

 private:
  SideQueue* previous_;
};

}  // namespace castor
