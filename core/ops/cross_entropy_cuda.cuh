// What both kernels of cross entropy on CUDA share: their operands, what they make of targets, and exponentials.
//
// Delicate: in bf16 and f16 the exponential is the processor's own: with the one of core/base/math.h these kernels
// would be bound by arithmetic.
#pragma once

#include "core/ops/row_packs_cuda.cuh"
#include "core/ops/softmax.h"

namespace castor::cuda {

struct Targets {
  const void* data;
  bool is_wide;
  __device__ std::int64_t operator[](std::int64_t row) const {
    return is_wide ? static_cast<const std::int64_t*>(data)[row] : static_cast<const std::int32_t*>(data)[row];
  }
};

/// Row-major logits [rows, classes] and what becomes of them. `gradients` may be the logits, or nullptr.
template <class T>
struct CrossEntropyRows {
  const T* logits;
  Targets targets;
  T* gradients;
  double* losses;
  const double* counted;  ///< how many rows the mean is over
  std::int64_t rows, classes, ignore_index;
  double smoothing;
  bool is_mean;

  __device__ bool counts(std::int64_t target) const {
    return target != ignore_index && target >= 0 && target < classes;
  }
  /// Loss and gradient of a row that does not count.
  __device__ double uncounted(std::int64_t target) const {
    return target == ignore_index ? 0.0 : std::numeric_limits<double>::quiet_NaN();
  }
  /// Of one row; `total` is the sum of its logits, which smoothing needs.
  __device__ double loss(double logsumexp, double at_target, double total) const {
    double loss = smoothing < 1 ? (1 - smoothing) * (logsumexp - at_target) : 0;
    if (smoothing > 0) loss += smoothing * (logsumexp - total / static_cast<double>(classes));
    return loss;
  }
  /// By which gradients are multiplied.
  __device__ double factor() const { return !is_mean ? 1.0 : *counted > 0 ? 1 / *counted : 0.0; }
};

/// e^(x - shift), for many x: of 16 bits by one product, exact enough for them.
template <class T>
struct ShiftedExp {
  using C = Computed<T>;
  explicit __device__ ShiftedExp(C shift)
      : by(std::is_arithmetic_v<T> ? shift : static_cast<C>(math::kLog2E * shift)) {}
  __device__ C operator()(C x) const {
    if constexpr (std::is_arithmetic_v<T>) {
      return math::exp(x - by);
    } else {
      return exp2_16(math::fma(x, math::kLog2E, -by));
    }
  }
  C by;
};

/// From how many classes on cross_entropy_long_rows is for rows of 16 bits, in words of 16 bytes.
inline constexpr std::int64_t kLongRow = 16384;
/// False, and nothing is done, on a device whose blocks cannot have as much shared memory as it takes: before compute
/// capability 9.0.
bool cross_entropy_long_rows(const Cuda& cuda, const CrossEntropyRows<BFloat16>& rows);
bool cross_entropy_long_rows(const Cuda& cuda, const CrossEntropyRows<Half>& rows);

}  // namespace castor::cuda
