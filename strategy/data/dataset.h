// What a data set owes the loader: how many samples, and a batch of chosen ones. Data sets are values of the config; a
// user's own derives from Dataset and is registered under a type name (samples/extend).
#pragma once

#include <cstdint>
#include <span>

#include "autograd/nn/trainable.h"

namespace castor::strategy {

class Dataset {
 public:
  virtual ~Dataset() = default;
  virtual std::int64_t size() const = 0;
  /// The samples of these numbers, each in [0, size()), stacked along axis 0, in host memory.
  virtual autograd::Batch batch(std::span<const std::int64_t> samples) const = 0;
};

}  // namespace castor::strategy
