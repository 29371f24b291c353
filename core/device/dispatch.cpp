// The observers of a thread, innermost first.
#include "core/device/dispatch.h"

namespace castor {

thread_local ObserverScope* innermost_observer = nullptr;
thread_local std::uint64_t op_count = 0;

ObserverScope::ObserverScope(DispatchObserver& observer) : observer_(observer), outer_(innermost_observer) {
  innermost_observer = this;
}

ObserverScope::~ObserverScope() { innermost_observer = outer_; }

void notify(const OpCall& call, bool is_after) {
  for (ObserverScope* scope = innermost_observer; scope != nullptr; scope = scope->outer_) {
    is_after ? scope->observer_.after(call) : scope->observer_.before(call);
  }
}

}  // namespace castor
