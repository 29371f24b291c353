// The one choke point between an op's contract and its kernels. Picks the kernel by overload, so a missing one is a
// link error; on meta it only notes the cost. Observers (tracer, FLOP counter, planner) see every call; without one the
// price is a thread-local load.
#pragma once

#include <cstddef>
#include <cstdint>

#include "build_config.h"
#include "core/base/error.h"
#include "core/device/backend.h"

namespace castor {

/// What one op costs on its target.
struct Cost {
  double flops = 0;
  double bytes = 0;  ///< read and written, each operand once
};

/// One call of an op.
struct OpCall {
  const char* name;
  Device device;
  Cost cost;
};

/// Watches the ops of the thread that installed it.
class DispatchObserver {
 public:
  virtual ~DispatchObserver() = default;
  virtual void before(const OpCall&) {}
  virtual void after(const OpCall&) {}
};

/// Installs `observer` for the thread while the scope lives; inner scopes see each call first.
class ObserverScope {
 public:
  explicit ObserverScope(DispatchObserver& observer);
  ~ObserverScope();
  ObserverScope(const ObserverScope&) = delete;
  ObserverScope& operator=(const ObserverScope&) = delete;

 private:
  friend void notify(const OpCall& call, bool is_after);
  DispatchObserver& observer_;
  ObserverScope* outer_;
};

extern thread_local ObserverScope* innermost_observer;
extern thread_local std::uint64_t op_count;

/// Ops that this thread has run so far. Between two values of it an op takes the addresses of its operands.
inline std::uint64_t dispatched_ops() { return op_count; }
void notify(const OpCall& call, bool is_after);

/// Runs `args` on `device`. Args has `static constexpr const char* kName`, a free `Cost cost(const Args&)`, and a free
/// `void run(const Cpu&, const Args&)` (and `run(const Cuda&, const Args&)` in builds with CUDA).
template <class Args>
void dispatch(Device device, const Args& args) {
  const bool is_observed = innermost_observer != nullptr;
  OpCall call{Args::kName, device, {}};
  if (is_observed) {
    call.cost = cost(args);
    notify(call, false);
  }
  if (device.is_cpu()) {
    run(Cpu{device}, args);
  } else if (!device.is_meta()) {
    if constexpr (kHasCuda) {
      run(Cuda{device, backend(device).stream()}, args);
    } else {
      throw DeviceError(cat(Args::kName, ": this build has no CUDA kernels; the tensor is on ", device));
    }
  }
  ++op_count;
  if (is_observed) notify(call, true);
}

}  // namespace castor
