// AdamW with states in 8 bits: each block of kStatisticsBlock elements of the logical tensor has one f32 scale for each
// of its two moments, the block's largest magnitude, and a byte an element that names a number of the dynamic code.
//
// Delicate: a block is dequantised, updated, measured and quantised again in one go, so a block never depends on
// another and cuts at block boundaries keep every bit. The parameter is updated from the moments before they are
// rounded to the code.
#pragma once

#include "core/ops/optim.h"

namespace castor {

/// Adam's step (AdamArgs) with moments read as value[code] * scale and written as the nearest codes of moment / scale.
struct Adam8bitArgs {
  static constexpr const char* kName = "adam8bit";
  View parameter, gradient, copy;
  View mean_codes, square_codes;    ///< u8 [count]: codes of the signed and of the unsigned table
  View mean_scales, square_scales;  ///< f32 [block_count(count)]
  AdamScalars scalars;
};
Cost cost(const Adam8bitArgs& args);
void run(const Cpu& cpu, const Adam8bitArgs& args);
void run(const Cuda& cuda, const Adam8bitArgs& args);

/// The two moments of a range that starts at a block's boundary. Zeros are scales of 0.
struct Adam8bitStates {
  Tensor mean_codes, square_codes;    ///< u8 [count], row-major
  Tensor mean_scales, square_scales;  ///< f32 [block_count(count)], row-major
};

/// One step on a range. Throws ShapeError (counts differ, not row-major), DTypeError, DeviceError.
void adam8bit_step(const StepTensors& tensors, const Adam8bitStates& states, const AdamScalars& scalars);

}  // namespace castor
