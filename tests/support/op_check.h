// The case tables of op tests: a test names an op, how to call it, a naive f64 reference and the shapes; this runs it
// on every device and dtype, with row-major, permuted and sliced operands, and once on meta, and says which element of
// which case is wrong.
//
// Delicate: operands are rounded to the dtype first and the reference sees the rounded values, so that only the op's
// own error is measured. The gaps of sliced operands hold NaN: reading one shows. A case's numbers depend on its name
// and shapes only.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "autograd/variable.h"
#include "core/base/dtype.h"
#include "core/tensor/tensor.h"

namespace castor::test {

/// Row-major f64 values: what references compute on.
struct Array {
  Shape shape;
  std::vector<double> values;
  std::optional<DType> dtype =
      {};  ///< of a reference's result: the dtype the op must give; unset = the dtype under test

  Array() = default;
  explicit Array(const Shape& sizes, double value = 0)
      : shape(sizes), values(static_cast<std::size_t>(sizes.numel()), value) {}
  Array(const Shape& sizes, std::vector<double> numbers) : shape(sizes), values(std::move(numbers)) {}

  std::int64_t numel() const { return static_cast<std::int64_t>(values.size()); }
  double& operator[](std::int64_t i) { return values[static_cast<std::size_t>(i)]; }
  double operator[](std::int64_t i) const { return values[static_cast<std::size_t>(i)]; }
  double& at(const Shape& index) { return values[static_cast<std::size_t>(flat(index))]; }
  double at(const Shape& index) const { return values[static_cast<std::size_t>(flat(index))]; }
  std::int64_t flat(const Shape& index) const;    ///< row-major position of `index`
  Shape index_of(std::int64_t position) const;    ///< the inverse of `flat`
  Array broadcast_to(const Shape& wanted) const;  ///< by NumPy's rule
};

/// One operand of a case: uniform random values in [low, high), or the given ones.
struct Operand {
  Shape shape;
  double low = -1;
  double high = 1;
  std::optional<DType> dtype =
      {};  ///< fixed for this operand; unset = the dtype under test. Integers and bool truncate.
  std::vector<double> values = {};  ///< if not empty: the values, row-major
};

/// One row of a table.
struct OpCase {
  std::string name;
  std::vector<Operand> operands;
};

using Tensors = std::vector<Tensor>;
using Arrays = std::vector<Array>;
using TensorFunction = std::function<Tensors(const Tensors& inputs)>;
using ArrayFunction = std::function<Arrays(const Arrays& inputs)>;

/// An op with its reference.
struct OpCheck {
  std::string op;
  TensorFunction run;
  ArrayFunction reference;  ///< the same results in f64; an Array's dtype says when it is not the dtype under test
  std::vector<DType> dtypes = {DType::f32, DType::bf16, DType::f16};
  double scale = 0;     ///< errors are relative to at least this magnitude: for results that cancel (the tail of gelu)
  double slack = 1;     ///< multiplies `tolerance`: for long sums and steep functions
  bool strided = true;  ///< also with permuted, sliced and mixed operands
  bool on_meta = true;  ///< also on meta: equal shapes, dtypes and strides of the results
  bool any_threads = false;  ///< also with 3 threads: equal bits
};

/// Runs the table. Failures are doctest check failures that name op, case, dtype, layout, device and the worst element.
void check_op(const OpCheck& check, const std::vector<OpCase>& cases);

/// gradients of the inputs, from the inputs and the gradients of the outputs; an undefined tensor means "not
/// differentiable".
using TensorBackward = std::function<Tensors(const Tensors& inputs, const Tensors& output_gradients)>;

/// A forward function with its backward.
struct GradientCheck {
  std::string op;
  TensorFunction forward;
  TensorBackward backward;
  DType numeric_dtype = DType::f64;  ///< f64, or f32 for ops without f64 kernels (looser)
  std::vector<DType> dtypes = {DType::f32, DType::bf16,
                               DType::f16};  ///< backward in these against backward in numeric_dtype
  double scale = 0;                          ///< as OpCheck::scale, for the low-precision comparison
  double slack = 1;
  double step = 0;      ///< of the central differences; 0 = by dtype
  bool strided = true;  ///< the low-precision comparison also with strided operands
};

using VariableFunction = std::function<std::vector<autograd::Variable>(const std::vector<autograd::Variable>& inputs)>;

/// A check of a function of variables: forward runs it under no_grad, backward records it and walks the graph. Every
/// floating operand is a leaf that requires a gradient; a leaf that none reached has an undefined gradient.
GradientCheck variable_check(std::string op, const VariableFunction& function);

/// Compares backward with central differences of sum(weights * outputs): up to 16 elements of each floating input and
/// two random directions over all of it. Then compares backward in each of `dtypes` with backward in `numeric_dtype` on
/// the same values. Inputs must stay away from kinks by more than the step (choose low and high, or values).
void check_gradient(const GradientCheck& check, const std::vector<OpCase>& cases);

/// Devices with kernels that tests run on: the CPU first.
std::vector<Device> test_devices();
/// Replaces the list, e.g. to add a fake device.
void set_test_devices(std::vector<Device> devices);

/// Relative error allowed for one rounding-dominated op: f64 1e-12, f32 2e-6, f16 1e-3, bf16 8e-3; 0 for integers.
double tolerance(DType dtype);

/// Random shapes: the first ones are a scalar (if min_dims is 0), an empty one and one of 1s; the others have
/// sizes 1..max_size.
std::vector<Shape> random_shapes(int count, int min_dims, int max_dims, std::int64_t max_size, std::uint64_t seed);

/// Cases named by their shapes, of one operand each.
std::vector<OpCase> unary_cases(const std::vector<Shape>& shapes, double low = -1, double high = 1);

/// Element order in memory of an operand.
enum class Layout { row_major, permuted, sliced };

/// A tensor of `dtype` with the array's values (rounded) in the given layout.
Tensor make_tensor(const Array& array, DType dtype, Device device = kCpu, Layout layout = Layout::row_major);
/// Uniform random values in [low, high) as f64, not rounded.
Array random_array(const Shape& shape, std::uint64_t seed, double low = -1, double high = 1);
/// The values of a tensor of any strides.
Array to_array(const Tensor& tensor);

/// One doctest check: shape, dtype and values of `got` against `want`, relative to max(|want|, mean |want|, scale).
void check_close(const std::string& what, const Tensor& got, const Array& want, DType dtype, double relative_tolerance,
                 double scale = 0);
/// One doctest check: equal shape, dtype and bits.
void check_same_bits(const std::string& what, const Tensor& got, const Tensor& want);

}  // namespace castor::test
