// What the contracts of optimizers with factored moments (Adafactor, CAME) share: checks, and the factors that a
// range's update is made with.
#pragma once

#include "core/ops/optim_checks.h"

namespace castor::optim_checks {

/// Throws unless the range lies within the parameter.
inline void check_range(const char* op, const FactoredShape& shape, std::int64_t offset, std::int64_t count) {
  check_offset(op, offset);
  const std::int64_t total = shape.batch * shape.rows * shape.columns;
  if (offset + count > total) {
    throw ShapeError(
        cat(op, ": range [", offset, ", ", offset + count, ") reaches beyond the parameter's ", total, " elements"));
  }
}

template <class T>
Tensor small_tensor(std::span<const T> values, Device device) {
  const CategoryScope scope(Category::workspace);
  return Tensor::from_values(values, {static_cast<std::int64_t>(values.size())}, device);
}

/// The factors of a factored update, or both undefined.
struct Factors {
  Tensor row, column;
};

inline Factors factors_of(const AdafactorMoments& moments, const FactoredShape& shape) {
  if (!moments.row.defined()) return {};
  const Device device = moments.row.device();
  Factors factors{empty_workspace(shape.row_count(), DType::f32, device),
                  empty_workspace(shape.column_count(), DType::f32, device)};
  dispatch(device, FactoredMomentsArgs{moments.row.view(),
                                       moments.column.view(),
                                       {},
                                       {},
                                       {},
                                       {},
                                       factors.row.view(),
                                       factors.column.view(),
                                       shape,
                                       1,
                                       0});
  return factors;
}

inline void check_moments(const char* op, const AdafactorMoments& moments, const FactoredShape& shape) {
  check_defined(op, "the row moment", moments.row);
  check_defined(op, "the column moment", moments.column);
  if (moments.row.numel() != shape.row_count() || moments.column.numel() != shape.column_count() ||
      !moments.row.is_contiguous() || !moments.column.is_contiguous()) {
    throw ShapeError(cat(op, ": expected ", shape.row_count(), " row and ", shape.column_count(),
                         " column moments, got ", moments.row, " and ", moments.column));
  }
  if (moments.row.dtype() != DType::f32 || moments.column.dtype() != DType::f32) {
    throw DTypeError(cat(op, ": moments must be f32, got ", moments.row, " and ", moments.column));
  }
}

/// Checks factored moments or, for a parameter with one axis, the second moment of the range.
inline void check_second_moments(const char* op, const Tensor& like, const AdafactorMoments& moments,
                                 const FactoredShape& shape, std::int64_t offset) {
  if (moments.row.defined()) {
    check_moments(op, moments, shape);
    check_range(op, shape, offset, like.numel());
  } else {
    check_defined(op, "the second moment", moments.exp_avg_sq);
    check_offset(op, offset);
    check_state(op, "the second moment", moments.exp_avg_sq, like);
  }
}

inline void check_sums(const char* op, const FactoredShape& shape, std::span<const double> row_sums,
                       std::span<const double> column_sums) {
  if (static_cast<std::int64_t>(row_sums.size()) != shape.row_count() ||
      static_cast<std::int64_t>(column_sums.size()) != shape.column_count()) {
    throw ShapeError(cat(op, ": expected ", shape.row_count(), " row and ", shape.column_count(), " column sums, got ",
                         row_sums.size(), " and ", column_sums.size()));
  }
}

}  // namespace castor::optim_checks
