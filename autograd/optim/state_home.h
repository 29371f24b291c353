// Where states live that are more than memory: Stepper asks for their tensors here and uses them like any other.
#pragma once

#include "core/tensor/tensor.h"

namespace castor::autograd {

/// Makes tensors whose bytes come when their address is taken (StoragePager of core/tensor/storage.h). One op may use
/// tensors of one home at a time. Everything is made before the first use.
class StateHome {
 public:
  virtual ~StateHome() = default;
  /// A new row-major tensor of zeros. Throws InternalError after the first use.
  virtual Tensor make_state(const Shape& shape, DType dtype) = 0;
};

}  // namespace castor::autograd
