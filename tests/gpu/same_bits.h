// What the GPU suites share: the same values in the same layout on both devices, and a comparison of all bytes that the
// kernels were given to write, gaps of sliced results included.
//
// Delicate: what a NaN's sign and payload are is the processor's own business, so any NaN equals any other. Everything
// else is compared bit by bit unless a test states a tolerance.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/tensor/tensor.h"

namespace castor::test {

inline constexpr Device kGpu{DeviceType::cuda, 0};

/// One tensor on both devices.
struct Twin {
  Tensor cpu;
  Tensor gpu;
};

/// The same view of both: twin.map([](const Tensor& x) { return x.transpose(0, 1); }).
Twin map(const Twin& twin, const std::function<Tensor(const Tensor&)>& view);

/// How the elements of an operand lie in memory.
enum class Layout { dense, permuted, sliced, stepped };
inline constexpr Layout kLayouts[] = {Layout::dense, Layout::permuted, Layout::sliced, Layout::stepped};

/// Which numbers.
struct Values {
  bool any_bits = false;  ///< floats: every second one has random bits, so infinities, NaN and subnormals occur;
                          ///< integers: the whole range
  double low = -10;
  double high = 10;
};

/// A twin of `shape`; the numbers depend on the arguments only.
Twin make_twin(const Shape& shape, DType dtype, const Values& values = {}, Layout layout = Layout::dense,
               std::uint64_t seed = 1);

/// How far results may be apart.
struct Tolerance {
  int ulps = 0;         ///< units in the last place of the dtype
  double absolute = 0;  ///< or: times (1 + |cpu|)
};

/// One doctest check that two tensors of one shape, dtype and strides hold the same: all the bytes of their storages.
/// The message names `what` and the first element that differs.
void check_same(const std::string& what, const Twin& twin, const Tolerance& tolerance = {});

/// "f32 [3,4] permuted", for messages.
std::string name_of(DType dtype, const Shape& shape, Layout layout);

/// Shapes that meet every path: no axes, no elements, one, short of a word, one block, ragged rows, eight axes, many
/// blocks.
std::vector<Shape> all_shapes();

}  // namespace castor::test
