// Counter-based random numbers: element i of a logical tensor depends on (RandomKey, i) only, never on how the work or
// the tensor was cut. So a shard [offset, offset + n) filled by itself has the bits of that part of the whole, and
// dropout's backward draws its mask again instead of storing it.
//
// Numbers are drawn in f32 and rounded once to the tensor's dtype. Bits are equal on every device.
#pragma once

#include "core/base/philox.h"
#include "core/device/dispatch.h"
#include "core/tensor/tensor.h"

namespace castor {

/// What fill_random draws. In brackets, the meaning of RandomFillArgs' a and b.
enum class Distribution : std::uint8_t {
  uniform,          ///< in [a, b)
  normal,           ///< mean a, standard deviation b
  truncated_normal  ///< the same, conditioned on [low, high]
};

/// y[i] = number of element offset + i; f32|bf16|f16|f64, row-major.
struct RandomFillArgs {
  static constexpr const char* kName = "random_fill";
  View y;
  RandomKey key;
  std::uint64_t offset;
  Distribution distribution;
  double a, b;
  double low, high;
};
Cost cost(const RandomFillArgs& args);
void run(const Cpu& cpu, const RandomFillArgs& args);
void run(const Cuda& cuda, const RandomFillArgs& args);

/// y[i] = x[i] / (1 - probability) where element offset + i is kept, 0 where it is dropped; one dtype, row-major. y may
/// be x.
struct DropoutArgs {
  static constexpr const char* kName = "dropout";
  View x, y;
  RandomKey key;
  std::uint64_t offset;
  double probability;
};
Cost cost(const DropoutArgs& args);
void run(const Cpu& cpu, const DropoutArgs& args);
void run(const Cuda& cuda, const DropoutArgs& args);

/// Fills y with uniform numbers in [low, high).
///   y       f32|bf16|f16|f64, row-major
///   offset  y's first element within the logical tensor
/// Throws ShapeError (y not row-major), DTypeError.
void fill_uniform(const Tensor& y, RandomKey key, double low = 0, double high = 1, std::uint64_t offset = 0);

/// Fills y with normal numbers. Arguments and errors as above.
void fill_normal(const Tensor& y, RandomKey key, double mean = 0, double stddev = 1, std::uint64_t offset = 0);

/// Fills y with normal numbers conditioned on [low, high]. Throws ShapeError too if low >= high or stddev <= 0.
void fill_truncated_normal(const Tensor& y, RandomKey key, double mean, double stddev, double low, double high,
                           std::uint64_t offset = 0);

/// x with elements dropped with `probability` and the others scaled by 1 / (1 - probability), in a new row-major
/// tensor.
///   x            f32|bf16|f16|f64, any strides; elements count in row-major order
///   probability  in [0, 1]
/// Throws ShapeError for a probability outside [0, 1]; DTypeError.
Tensor dropout(const Tensor& x, RandomKey key, double probability, std::uint64_t offset = 0);

/// Gradient of dropout: the same elements of dy dropped, the others scaled. Arguments must be forward's.
Tensor dropout_backward(const Tensor& dy, RandomKey key, double probability, std::uint64_t offset = 0);

}  // namespace castor
