// Ops that move elements by index: embedding and index_select, gather and scatter_add, and the ones that cut and join.
//
// Delicate: gradients add up by element, always in order of position and in f32 (f64 for f64), rounded once at the end:
// no atomics, the same bits for any number of threads. An index outside its axis is refused by name on the CPU, before
// it is used. A GPU cannot say so: there it reads elements of ones in all bits (NaN in floats, -1 in integers) and adds
// to none.
#pragma once

#include <span>
#include <vector>

#include "core/device/dispatch.h"
#include "core/tensor/tensor.h"

namespace castor {

/// y[o, j, :] = x[o, ids[j], :].
///   x    [outer, size, inner], any dtype, last stride 1
///   ids  i64|i32 [n], any stride, each in [0, size)
///   y    [outer, n, inner] row-major, x's dtype
struct IndexSelectArgs {
  static constexpr const char* kName = "index_select";
  View x, ids, y;
};
Cost cost(const IndexSelectArgs& args);
void run(const Cpu& cpu, const IndexSelectArgs& args);
void run(const Cuda& cuda, const IndexSelectArgs& args);

/// dx[o, i, :] = sum over j with ids[j] = i of dy[o, j, :], rounded to dx's dtype; with `accumulate` the old dx[o, i,
/// :] plus that, rounded again, and rows without such j stay.
///   dy         [outer, n, inner], dx [outer, size, inner], f32|bf16|f16|f64, last strides 1
///   workspace  positions in order of their ids
///   skip       positions with this id contribute nothing; -1 = none
struct IndexAddArgs {
  static constexpr const char* kName = "index_add";
  View dy, ids, dx, workspace;
  std::int64_t skip;
  bool accumulate;
};
Cost cost(const IndexAddArgs& args);
void run(const Cpu& cpu, const IndexAddArgs& args);
void run(const Cuda& cuda, const IndexAddArgs& args);
std::size_t workspace_bytes(const Cpu& cpu, const IndexAddArgs& args);
std::size_t workspace_bytes(const Cuda& cuda, const IndexAddArgs& args);

/// y[..., j, ...] = x[..., index[..., j, ...], ...] along `axis`; x is at least as large as index along the other axes.
///   index  i64|i32, y of its shape and x's dtype; any strides
struct GatherArgs {
  static constexpr const char* kName = "gather";
  View x, index, y;
  int axis;
};
Cost cost(const GatherArgs& args);
void run(const Cpu& cpu, const GatherArgs& args);
void run(const Cuda& cuda, const GatherArgs& args);

/// y[..., index[..., j, ...], ...] += source[..., j, ...] along `axis`, in order of j; f32 or f64, any strides.
struct ScatterAddArgs {
  static constexpr const char* kName = "scatter_add";
  View y, index, source;
  int axis;
};
Cost cost(const ScatterAddArgs& args);
void run(const Cpu& cpu, const ScatterAddArgs& args);
void run(const Cuda& cuda, const ScatterAddArgs& args);

/// Slices of x along `axis`, in the order of ids.
///   x        any dtype and strides
///   ids      i64|i32 [n], each in [0, x.size(axis))
///   returns  x's shape with n along the axis, row-major
/// Throws ShapeError, naming the index and its position, for one outside the axis, where the device can say so;
/// DTypeError, DeviceError.
Tensor index_select(const Tensor& x, int axis, const Tensor& ids);

/// Gradient of index_select: zeros of `shape` plus each slice of dy where its id says.
Tensor index_select_backward(const Tensor& dy, const Shape& shape, int axis, const Tensor& ids);

/// Rows of a table: [V, D] by ids of any shape gives ids.shape + [D]. Throws as index_select.
Tensor embedding(const Tensor& weight, const Tensor& ids);

/// Gradient of embedding as a new [vocabulary, D] in dy's dtype.
///   dy    ids.shape + [D]
///   skip  an id whose row gets no gradient (a padding index); -1 = none
Tensor embedding_backward(const Tensor& dy, const Tensor& ids, std::int64_t vocabulary, std::int64_t skip = -1);

/// The same added to `gradient` [V, D]: what adding a gradient of its own would give, in the rows that are read.
void embedding_backward_add(const Tensor& dy, const Tensor& ids, const Tensor& gradient, std::int64_t skip = -1);

/// Elements of x picked along `axis` by an index of as many axes, no larger than x along the others. Result: index's
/// shape. Throws ShapeError (naming index and position when outside, where the device can say so), DTypeError,
/// DeviceError.
Tensor gather(const Tensor& x, int axis, const Tensor& index);

/// A copy of x plus source's elements where index says; source of index's shape and x's dtype. The transpose of gather.
///   x  f32|bf16|f16|f64; 16-bit dtypes add in f32 and round once
/// Throws as gather.
Tensor scatter_add(const Tensor& x, int axis, const Tensor& index, const Tensor& source);

/// Gradient of gather: zeros of `shape` with dy scattered.
Tensor gather_backward(const Tensor& dy, const Shape& shape, int axis, const Tensor& index);

/// The tensors joined along `axis`, row-major; one dtype and device, equal other sizes. Throws ShapeError for an empty
/// list.
Tensor concat(std::span<const Tensor> tensors, int axis);

/// Views of x cut along `axis`: `sizes` must add up to x's size there.
std::vector<Tensor> split(const Tensor& x, std::span<const std::int64_t> sizes, int axis);
/// Views of at most `size` along `axis`; the last one may be smaller.
std::vector<Tensor> split(const Tensor& x, std::int64_t size, int axis);

/// x surrounded by `value`: before[i] and after[i] elements along axis i (at least 0, one for each axis).
Tensor pad(const Tensor& x, const Shape& before, const Shape& after, double value = 0);

/// Gradient of narrow(axis, start, dy's size): zeros of `shape` with dy in its place. (That of pad is dy narrowed.)
Tensor narrow_backward(const Tensor& dy, const Shape& shape, int axis, std::int64_t start);

}  // namespace castor
