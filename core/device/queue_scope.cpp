// The thread's innermost queue; see queue_scope.h.
#include "core/device/queue_scope.h"

#include <utility>

namespace castor {
namespace {

thread_local SideQueue* innermost = nullptr;

}  // namespace

QueueScope::QueueScope(SideQueue& queue) : previous_(std::exchange(innermost, &queue)) {}
QueueScope::~QueueScope() { innermost = previous_; }
SideQueue* QueueScope::current() { return innermost; }

}  // namespace castor
