// Differentiable ops of the index family; shapes, dtypes and errors are those of core/ops/index.h. Indices have no
// gradient.
#pragma once

#include <span>
#include <vector>

#include "autograd/variable.h"

namespace castor::autograd {

/// Rows of `weight` [V,D] by ids of any shape; see castor::embedding.
///   padding_index  an id whose row gets no gradient; -1 = none
Variable embedding(const Variable& weight, const Tensor& ids, std::int64_t padding_index = -1);

/// Slices of x along `axis`, in the order of ids.
Variable index_select(const Variable& x, int axis, const Tensor& ids);

/// Elements of x picked along `axis`.
Variable gather(const Variable& x, int axis, const Tensor& index);

/// x with source's elements added where index says.
Variable scatter_add(const Variable& x, int axis, const Tensor& index, const Variable& source);

/// The variables joined along `axis`.
Variable concat(const std::vector<Variable>& variables, int axis);

/// Views of x cut along `axis` into parts of the given sizes; the parts' gradients are joined once.
std::vector<Variable> split(const Variable& x, std::span<const std::int64_t> sizes, int axis);

/// Elements [start, start + length) along `axis` (a view).
Variable narrow(const Variable& x, int axis, std::int64_t start, std::int64_t length);

/// x surrounded by `value`; see castor::pad.
Variable pad(const Variable& x, const Shape& before, const Shape& after, double value = 0);

}  // namespace castor::autograd
