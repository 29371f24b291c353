// Elementwise ops: one input, two inputs with broadcasting, comparison, selection. The maths is in pointwise.h; this is
// what a caller and a kernel author both need. Floats of 16 bits are computed in f32 and rounded once.
#pragma once

#include "core/device/dispatch.h"
#include "core/ops/pointwise.h"
#include "core/tensor/tensor.h"

namespace castor {

/// y = op(x); equal shapes, f32|bf16|f16|f64, any strides. y may be x.
struct UnaryArgs {
  static constexpr const char* kName = "unary";
  View x, y;
  UnaryOp op;
  double a, b;
};
Cost cost(const UnaryArgs& args);
void run(const Cpu& cpu, const UnaryArgs& args);
void run(const Cuda& cuda, const UnaryArgs& args);

/// dx = dy * op'(x, y). `x` is absent for ops whose slope uses the output only; `y` is absent for the others. dx may be
/// dy.
struct UnaryBackwardArgs {
  static constexpr const char* kName = "unary_backward";
  View x, y, dy, dx;
  UnaryOp op;
  double a, b;
};
Cost cost(const UnaryBackwardArgs& args);
void run(const Cpu& cpu, const UnaryBackwardArgs& args);
void run(const Cuda& cuda, const UnaryBackwardArgs& args);

/// z = op(x, y); equal shapes after expansion, one dtype: f32|bf16|f16|f64, and i64|i32 except div and pow. z may be x
/// or y.
struct BinaryArgs {
  static constexpr const char* kName = "binary";
  View x, y, z;
  BinaryOp op;
};
Cost cost(const BinaryArgs& args);
void run(const Cpu& cpu, const BinaryArgs& args);
void run(const Cuda& cuda, const BinaryArgs& args);

/// z = op(x, y) as bool; x and y of one dtype.
struct CompareArgs {
  static constexpr const char* kName = "compare";
  View x, y, z;
  CompareOp op;
};
Cost cost(const CompareArgs& args);
void run(const Cpu& cpu, const CompareArgs& args);
void run(const Cuda& cuda, const CompareArgs& args);

/// z = condition ? x : y; condition bool, x, y, z of one dtype.
struct WhereArgs {
  static constexpr const char* kName = "where";
  View condition, x, y, z;
};
Cost cost(const WhereArgs& args);
void run(const Cpu& cpu, const WhereArgs& args);
void run(const Cuda& cuda, const WhereArgs& args);

/// op(x) in a new tensor of x's shape, strides order and dtype.
///   x     f32|bf16|f16|f64, any shape and strides
///   a, b  the op's scalars (see UnaryOp)
/// Throws DTypeError for other dtypes.
Tensor unary(UnaryOp op, const Tensor& x, double a = 0, double b = 0);
/// The same, written over x's values.
void unary_inplace(UnaryOp op, const Tensor& x, double a = 0, double b = 0);

/// dy * op'(x). Pass the tensor the slope needs (see slope_uses_output_only) and an undefined one for the other.
Tensor unary_backward(UnaryOp op, const Tensor& x, const Tensor& y, const Tensor& dy, double a = 0, double b = 0);

/// op(x, y) with NumPy broadcasting, in a new tensor. Throws ShapeError, DTypeError (dtypes differ), DeviceError.
Tensor binary(BinaryOp op, const Tensor& x, const Tensor& y);
/// x = op(x, y); y broadcasts to x.
void binary_inplace(BinaryOp op, const Tensor& x, const Tensor& y);

/// op(x, y) with broadcasting; the result is bool.
Tensor compare(CompareOp op, const Tensor& x, const Tensor& y);

/// condition ? x : y with broadcasting.
Tensor where(const Tensor& condition, const Tensor& x, const Tensor& y);

inline Tensor add(const Tensor& x, const Tensor& y) { return binary(BinaryOp::add, x, y); }
inline Tensor sub(const Tensor& x, const Tensor& y) { return binary(BinaryOp::sub, x, y); }
inline Tensor mul(const Tensor& x, const Tensor& y) { return binary(BinaryOp::mul, x, y); }
inline Tensor div(const Tensor& x, const Tensor& y) { return binary(BinaryOp::div, x, y); }
/// factor * x.
inline Tensor scale(const Tensor& x, double factor) { return unary(UnaryOp::affine, x, factor, 0); }

/// New uninitialised tensor of `like`'s shape and dtype whose axes lie in memory in the same order as `like`'s
/// (channels-last stays so).
Tensor empty_like_strided(const Tensor& like);

}  // namespace castor
