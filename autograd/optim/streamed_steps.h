// StreamedSteps: steps of ranges whose states are on the host, done by the GPU: the states come over the link, are
// stepped, and go back, beside what the host steps itself. A host steps what its memory is fast enough for (some 30
// bytes a weight), while the link it is attached by lies idle; both do the same arithmetic, with the same bits.
//
// A few slots take turns, each a queue with its own memory on the GPU, so that one range comes while another goes: 24
// bytes a weight with Adam, both ways at once.
//
// Delicate: the host may not touch a range's states between `step` and `wait`, nor the device its weights before it
// has waited for the event. What copies read is kept until they are over: host memory is used again at once. Inside a
// slot the queue's order keeps its memory; between the host and the slots only events do.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "autograd/optim/optimizer.h"
#include "core/device/backend.h"

namespace castor::autograd {

class StreamedSteps {
 public:
  /// Elements that are stepped at a time: a multiple of kBlockElements.
  static constexpr std::int64_t kElements = std::int64_t{1} << 21;

  /// On `device`, a GPU or a meta device that stands for one.
  ///   range_bytes  most moved_bytes of one range
  StreamedSteps(Device device, std::size_t range_bytes);
  /// Waits for what is on its way.
  ~StreamedSteps();
  StreamedSteps(const StreamedSteps&) = delete;
  StreamedSteps& operator=(const StreamedSteps&) = delete;

  /// Bytes that it takes on the device for optimizers with so many bytes of states an element, masters included.
  static double device_bytes(double state_bytes_per_element);
  /// Bytes of a slot that a step of `range` takes: of what it has elsewhere than on `device`.
  static std::size_t moved_bytes(const Range& range, Device device);

  /// True: a step begins at once. On meta always.
  bool has_room() const;
  /// Starts a step of `range`, whose copy is on the device and whose other tensors are there, complete at `ready`, or
  /// in page-locked memory of the host. Its end; empty on meta.
  Event step(const Optimizer& optimizer, const Range& range, const StepContext& context, const Event& ready);
  /// Returns when all steps have ended: the host may use their states.
  void wait();

 private:
  struct Slot {
    std::unique_ptr<SideQueue> queue;  // null on meta
    Tensor memory;                     // u8
    Event end;                         // of the last step
    std::vector<Tensor> kept;          // what its copies read and write on the host
  };
  void let_go(Slot& slot) const;

  Device device_;
  std::vector<Slot> slots_;
  std::size_t next_ = 0;  // the slot whose turn it is
};

}  // namespace castor::autograd
