// Two queues, one for each direction of the link.
#include "autograd/optim/side_copies.h"

#include <algorithm>
#include <utility>

#include "core/base/error.h"
#include "core/device/trace.h"
#include "core/ops/cast.h"

namespace castor::autograd {
namespace {

constexpr std::size_t kLeastKept = std::size_t{64} << 20;

}  // namespace

SideCopies::SideCopies(Device device)
    : device_(device), incoming_(backend(device).open_queue()), outgoing_(backend(device).open_queue()) {}

SideCopies::~SideCopies() {
  try {
    for (const Store& store : stores_) backend(device_).wait_on_host(store.end);
    backend(device_).wait_on_host(last_fetch_);
  } catch (const DeviceError&) {  // the device is lost, and with it what was on its way
  }
}

bool SideCopies::is_between(const Tensor& x, Device place) const {
  return overlaps() && x.device() == device_ && kernel_type(place) == DeviceType::cpu && x.is_contiguous() &&
         x.numel() > 0;
}

void SideCopies::begin() {
  if (overlaps()) ready_ = backend(device_).record();
}

SideCopies::Fetch SideCopies::fetch(const Tensor& x, Device place) {
  if (!x.defined() || x.device() == place) return {x, {}};
  Fetch result{Tensor::empty(x.shape(), x.dtype(), place), {}};
  if (incoming_ == nullptr || !is_between(x, place)) {
    copy_across(x, result.tensor);
    return result;
  }
  incoming_->wait(ready_);
  const TraceSpan span("to the host", "copy", incoming_.get(), "copies to the host");
  incoming_->copy(result.tensor.view().data, x.view().data, x.view().bytes());
  last_fetch_ = result.end = incoming_->record();
  return result;
}

const Tensor& SideCopies::finish(Fetch& fetch) {
  const Event end = std::exchange(fetch.end, {});
  if (!backend(device_).has_passed(end)) backend(device_).wait_on_host(end);
  return fetch.tensor;
}

void SideCopies::store(const Tensor& x, const Tensor& y) {
  if (!is_between(y, x.device())) return copy_across(x, y);
  // What is kept is as much as two large tensors: one is written while the next is computed. Small ones may wait for
  // what others put on the link.
  const std::size_t bytes = x.view().bytes();
  largest_ = std::max(largest_, bytes);
  while (!stores_.empty() && stored_bytes_ + bytes > std::max(2 * largest_, kLeastKept)) {
    backend(device_).wait_on_host(stores_.front().end);
    stored_bytes_ -= stores_.front().source.view().bytes();
    stores_.pop_front();
  }
  stores_.push_back({x, {}});
  stored_bytes_ += bytes;
  if (outgoing_ == nullptr) return copy_across(x, y);
  outgoing_->wait(ready_);
  const TraceSpan span("to the device", "copy", outgoing_.get(), "copies to the device");
  outgoing_->copy(y.view().data, x.view().data, x.view().bytes());
  stores_.back().end = outgoing_->record();
}

void SideCopies::end() {
  if (!stores_.empty()) backend(device_).wait(stores_.back().end);
}

}  // namespace castor::autograd
