// What the contracts of the optimizer family share: checks of flat tensors, scratch, and the addition of block sums in
// order.
#pragma once

#include "core/ops/optim.h"

namespace castor::optim_checks {

inline void check_flat(const char* op, const char* name, const Tensor& x, const Tensor& parameter) {
  if (!x.defined()) return;
  if (x.numel() != parameter.numel() || !x.is_contiguous()) {
    throw ShapeError(
        cat(op, ": ", name, " must be row-major with as many elements as the parameter ", parameter, ", got ", x));
  }
}

inline void check_state(const char* op, const char* name, const Tensor& x, const Tensor& parameter) {
  check_flat(op, name, x, parameter);
  if (x.defined() && x.dtype() != DType::f32) throw DTypeError(cat(op, ": ", name, " must be f32, got ", x));
}

inline void check_gradient_dtype(const char* op, const Tensor& x) {
  if (x.defined() && x.dtype() != DType::f32 && x.dtype() != DType::bf16 && x.dtype() != DType::f16) {
    throw DTypeError(cat(op, ": expected a gradient of f32, bf16 or f16, got ", x));
  }
}

inline void check_tensors(const char* op, const StepTensors& tensors) {
  if (!tensors.parameter.defined()) throw ShapeError(cat(op, ": the parameter is undefined"));
  check_state(op, "the parameter", tensors.parameter, tensors.parameter);
  check_flat(op, "the gradient", tensors.gradient, tensors.parameter);
  check_flat(op, "the copy", tensors.copy, tensors.parameter);
  check_gradient_dtype(op, tensors.gradient);
  if (tensors.copy.defined() && tensors.copy.dtype() != DType::bf16 && tensors.copy.dtype() != DType::f16) {
    throw DTypeError(cat(op, ": expected a copy of bf16 or f16, got ", tensors.copy));
  }
}

inline void check_defined(const char* op, const char* name, const Tensor& x) {
  if (!x.defined()) throw ShapeError(cat(op, ": ", name, " is undefined"));
}

inline void check_offset(const char* op, std::int64_t offset) {
  if (offset < 0 || offset % kStatisticsBlock != 0) {
    throw ShapeError(cat(op, ": ranges start at multiples of ", kStatisticsBlock, " elements, got offset ", offset));
  }
}

inline void check_factor(const char* op, const Tensor& factor) {
  if (!factor.defined()) return;
  if (factor.dtype() != DType::f64) throw DTypeError(cat(op, ": the factor must be f64, got ", factor));
  if (factor.numel() != 1) throw ShapeError(cat(op, ": the factor must be one number, got ", factor));
}

inline void check_place(const char* op, const Tensor& place, std::size_t bytes, std::size_t alignment) {
  if (!place.defined()) return;
  const bool fits = place.view().bytes() == bytes && place.is_contiguous() &&
                    reinterpret_cast<std::uintptr_t>(place.view().data) % alignment == 0;
  if (!fits) throw ShapeError(cat(op, ": the place of the scalars must be ", bytes, " bytes, got ", place));
}

inline Tensor empty_workspace(std::int64_t count, DType dtype, Device device) {
  const CategoryScope scope(Category::workspace);
  return Tensor::empty({count}, dtype, device);
}

inline Tensor block_sums_for(std::int64_t count, Device device) {
  return empty_workspace((count + kStatisticsBlock - 1) / kStatisticsBlock, DType::f64, device);
}

inline double add_in_order(const Tensor& sums, double carry) {
  if (sums.device().is_meta()) return carry;
  for (const double sum : sums.to_vector<double>()) carry += sum;
  return carry;
}

inline double streamed_bytes(std::initializer_list<const View*> reads, std::initializer_list<const View*> updates) {
  double bytes = 0;
  for (const View* view : reads) bytes += static_cast<double>(view->bytes());
  for (const View* view : updates) bytes += 2 * static_cast<double>(view->bytes());
  return bytes;
}

}  // namespace castor::optim_checks
