// States of a parameter with two axes or more that are kept as one number a row and one a column: what Adafactor and
// CAME share. Every owner of a part keeps them whole.
#pragma once

#include "autograd/optim/step_tensors.h"
#include "core/ops/cast.h"

namespace castor::autograd {

/// The states' names.
struct FactoredNames {
  const char* row;     ///< [..., rows]
  const char* column;  ///< [..., columns]
};

inline bool is_factored(const Shape& shape) { return shape.ndim() >= 2; }

/// Empty for a parameter with one axis or none.
inline FactoredShape factoring(const Shape& shape) {
  return is_factored(shape) ? factored_shape(shape) : FactoredShape{};
}

/// Adds the two states of a parameter that is factored.
inline void add_factored_states(const Shape& shape, const FactoredNames& names, std::vector<StateSpec>& specs) {
  Shape row = shape, column = shape;
  row.erase(shape.ndim() - 1);
  column.erase(shape.ndim() - 2);
  specs.push_back({names.row, row, DType::f32});
  specs.push_back({names.column, column, DType::f32});
}

/// The two as core takes them.
inline AdafactorMoments factored_moments(const Range& range, const FactoredNames& names) {
  return {required_state(range, names.row), required_state(range, names.column), {}};
}

/// Writes the moments after this step, from finished sums of squares.
///   decay    of the moments
///   epsilon  added to each mean square
inline void update_factored(const Range& range, const FactoredNames& names, const std::vector<double>& row_sums,
                            const std::vector<double>& column_sums, double decay, double epsilon) {
  const AdafactorMoments before = factored_moments(range, names);
  const AdafactorMoments now = adafactor_moments(before, factoring(range.shape), row_sums, column_sums, decay, epsilon);
  copy_into(now.row, before.row);
  copy_into(now.column, before.column);
}

}  // namespace castor::autograd
