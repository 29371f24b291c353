// Slots, and a range's way through one; see streamed_steps.h.
#include "autograd/optim/streamed_steps.h"

#include <optional>
#include <utility>

#include "core/base/error.h"
#include "core/device/queue_scope.h"
#include "core/device/trace.h"
#include "core/ops/cast.h"

namespace castor::autograd {
namespace {

constexpr std::size_t kSlots = 3;  // one range comes, one is stepped, one goes; more were no faster
constexpr std::size_t kAlignment = 256;

std::size_t rounded(std::size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// Calls f with each tensor of a range that is not on the device, and whether a step writes it.
template <class R, class F>
void for_each_elsewhere(R& range, Device device, F&& f) {
  const auto look = [&](auto& x, bool is_written) {
    if (x.defined() && x.device() != device) f(x, is_written);
  };
  look(range.gradient, false);
  look(range.parameter, true);
  for (auto& [name, state] : range.states) look(state, true);
}

}  // namespace

StreamedSteps::StreamedSteps(Device device, std::size_t range_bytes) : device_(device) {
  const CategoryScope category(Category::workspace);
  for (std::size_t i = 0; i < kSlots; ++i) {
    const Shape shape{static_cast<std::int64_t>(range_bytes)};
    slots_.push_back({backend(device).open_queue(), Tensor::empty(shape, DType::u8, device), {}, {}});
  }
  // Memory is handed out in the order of the device's queue.
  const Event ready = backend(device).record();
  for (const Slot& slot : slots_) {
    if (slot.queue != nullptr) slot.queue->wait(ready);
  }
}

StreamedSteps::~StreamedSteps() {
  try {
    wait();
    for (const Slot& slot : slots_) backend(device_).wait(slot.end);
  } catch (const DeviceError&) {  // the device is lost, and with it what was on its way
  }
}

double StreamedSteps::device_bytes(double state_bytes_per_element) {
  return static_cast<double>(kSlots) * static_cast<double>(kElements) * state_bytes_per_element;
}

std::size_t StreamedSteps::moved_bytes(const Range& range, Device device) {
  std::size_t bytes = 0;
  for_each_elsewhere(range, device, [&](const Tensor& x, bool) { bytes += rounded(x.view().bytes()); });
  return bytes;
}

bool StreamedSteps::has_room() const { return backend(device_).has_passed(slots_[next_].end); }

Event StreamedSteps::step(const Optimizer& optimizer, const Range& range, const StepContext& context,
                          const Event& ready) {
  Slot& slot = slots_[next_];
  let_go(slot);
  if (moved_bytes(range, device_) > slot.memory.view().bytes())
    throw InternalError(cat("StreamedSteps: a range of '", *range.name, "' is larger than a slot"));
  Range here = range;
  struct Moved {
    Tensor host, there;
    bool is_written;
  };
  std::vector<Moved> moved;
  std::size_t used = 0;
  for_each_elsewhere(here, device_, [&](Tensor& x, bool is_written) {
    const auto offset = static_cast<std::int64_t>(used / dtype_size(x.dtype()));
    used += rounded(x.view().bytes());
    const Tensor there(slot.memory.storage(), x.shape(), x.shape().contiguous_strides(), offset, x.dtype());
    moved.push_back({std::exchange(x, there), there, is_written});
  });
  SideQueue* const queue = slot.queue.get();
  if (queue == nullptr) {
    for (const Moved& each : moved) copy_across(each.host, each.there);
    optimizer.apply(here, context, {});
    for (const Moved& each : moved) {
      if (each.is_written) copy_across(each.there, each.host);
    }
  } else {
    queue->wait(ready);
    std::optional<TraceSpan> span(std::in_place, "states to the device", "copy", queue, cat("streamed steps ", next_));
    for (const auto& [host, there, is_written] : moved)
      queue->copy(there.view().data, host.view().data, host.view().bytes());
    span.reset();
    {
      const QueueScope scope(*queue);
      optimizer.apply(here, context, {});
    }
    span.emplace("states to the host", "copy", queue, cat("streamed steps ", next_));
    for (const auto& [host, there, is_written] : moved) {
      if (is_written) queue->copy(host.view().data, there.view().data, host.view().bytes());
    }
    span.reset();
    slot.end = queue->record();
    for (const Moved& each : moved) slot.kept.push_back(each.host);
  }
  next_ = (next_ + 1) % slots_.size();
  return slot.end;
}

void StreamedSteps::wait() {
  for (Slot& slot : slots_) let_go(slot);
}

void StreamedSteps::let_go(Slot& slot) const {
  backend(device_).wait_on_host(slot.end);
  slot.kept.clear();
}

}  // namespace castor::autograd
