// Marks in a GPU's queues and the times when they were passed, for traces.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "core/device/device.h"

namespace castor {

class QueueClock {
 public:
  virtual ~QueueClock() = default;
  /// Marks the end of a queue (`Backend::stream` or `SideQueue::stream`); returns the mark's number, from 1 on.
  virtual std::size_t mark(void* stream) = 0;
  /// Of every mark, by number: seconds since the clock was opened, which is mark 0. Waits for all of them.
  virtual std::vector<double> seconds() = 0;
};

/// Counts from now, on the device's own queue.
std::unique_ptr<QueueClock> make_cuda_clock(Device device);

}  // namespace castor
