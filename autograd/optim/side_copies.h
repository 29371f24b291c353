// SideCopies: copies between a device and the host memory beside it, on their way while both compute: how a step whose
// states are on the host reads one part's gradient and writes another's weights beside the arithmetic.
//
// Delicate: what is copied must not change on the way. Gradients are complete when a step begins, and stored weights
// are kept until they are there; who uses them later, on the device's own queue, finds them after `end`.
#pragma once

#include <deque>
#include <memory>

#include "core/device/backend.h"
#include "core/tensor/tensor.h"

namespace castor::autograd {

class SideCopies {
 public:
  /// For tensors of `device`; one whose queue is its only one (a CPU) copies at once.
  explicit SideCopies(Device device);
  /// Waits for what is on its way.
  ~SideCopies();
  SideCopies(const SideCopies&) = delete;
  SideCopies& operator=(const SideCopies&) = delete;

  /// False: copies happen at once, so there is nothing in asking early. True on a meta device that stands for one that
  /// overlaps: what is kept meanwhile is planned, too.
  bool overlaps() const { return kernel_type(device_) != DeviceType::cpu; }

  /// What was asked for.
  struct Fetch {
    Tensor tensor;  ///< readable after `finish`
    Event end;
  };
  /// What the device has computed up to now may be fetched.
  void begin();
  /// When that was, in the device's queue.
  const Event& ready() const { return ready_; }
  /// Starts bringing a contiguous `x` to `place`; x itself where it is there.
  Fetch fetch(const Tensor& x, Device place);
  /// Returns when it is there.
  const Tensor& finish(Fetch& fetch);
  /// Starts writing `x` to `y`, of one shape and dtype, both contiguous. Keeps x until it is written.
  void store(const Tensor& x, const Tensor& y);
  /// The device's later work finds all that was stored.
  void end();

 private:
  bool is_between(const Tensor& x, Device place) const;

  struct Store {
    Tensor source;
    Event end;
  };
  Device device_;
  std::unique_ptr<SideQueue> incoming_, outgoing_;  // to the host, to the device; null on meta
  Event ready_, last_fetch_;
  std::deque<Store> stores_;
  std::size_t stored_bytes_ = 0, largest_ = 0;  // of stores_; of one store so far
};

}  // namespace castor::autograd
