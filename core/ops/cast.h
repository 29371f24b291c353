// Copies between dtypes, strides and devices. Rounding is to nearest even; integers truncate; see core/base/dtype.h.
#pragma once

#include "core/device/dispatch.h"
#include "core/tensor/tensor.h"

namespace castor {

/// y = x converted to y's dtype; equal shapes, any dtypes and strides.
struct CastArgs {
  static constexpr const char* kName = "cast";
  View x, y;
};
Cost cost(const CastArgs& args);
void run(const Cpu& cpu, const CastArgs& args);
void run(const Cuda& cuda, const CastArgs& args);

/// Every element of y, of any dtype and strides, becomes `value`, rounded once.
struct FillArgs {
  static constexpr const char* kName = "fill";
  View y;
  double value;
};
Cost cost(const FillArgs& args);
void run(const Cpu& cpu, const FillArgs& args);
void run(const Cuda& cuda, const FillArgs& args);

/// x in `dtype`; x itself when it has it.
Tensor cast(const Tensor& x, DType dtype);

/// x row-major; x itself when it is.
Tensor contiguous(const Tensor& x);

/// A row-major copy of x.
Tensor clone(const Tensor& x);

/// Copies x's values over y's, converting dtypes. Throws ShapeError unless the shapes are equal, DeviceError unless on
/// one device.
void copy_into(const Tensor& x, const Tensor& y);

/// Copies x's bytes over y's, of x's shape and dtype, both row-major. On meta it is a "transfer" that observers see.
/// Throws ShapeError, DTypeError.
void copy_across(const Tensor& x, const Tensor& y);

/// x on `device`, row-major; x itself when it is there. Between two devices it goes through host memory. Throws
/// DeviceError for a tensor without values, unless it stays without.
Tensor to_device(const Tensor& x, Device device);

/// `shape` with x's values: a view where strides allow, otherwise a copy.
Tensor reshape(const Tensor& x, const Shape& shape);

/// A new tensor filled with `value`.
Tensor full(const Shape& shape, double value, DType dtype, Device device = kCpu);

/// Fills x, any strides, with `value`.
void fill(const Tensor& x, double value);

}  // namespace castor
