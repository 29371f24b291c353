// How a batched product with any leading strides becomes a loop over calls of one strided-batched GEMM, on any device:
// axes that are dense in all operands merge, and left matrices that meet one right matrix become rows of one product.
//
// Delicate: the plan of a call is made twice, for the contract and for the run, and must come out the same; it looks at
// sizes and strides only.
#pragma once

#include <algorithm>
#include <utility>

#include "core/ops/matmul.h"

namespace castor {

/// One axis of the loop over matrices: its size and each operand's stride.
struct BatchAxis {
  std::int64_t size, a, b, c;
};

/// A product as a loop (`outer`, outermost first) over calls of one batched GEMM.
struct Product {
  BatchAxis outer[kMaxDims];
  int outer_count = 0;
  BatchAxis batch{1, 0, 0, 0};
  std::int64_t m, n, k;
  std::int64_t a_row, a_column, b_row, b_column, c_row;
};

/// True where a GEMM can read these strides: one of them is 1 and the other steps over all that it covers.
inline bool is_matrix(std::int64_t rows, std::int64_t columns, std::int64_t row_stride, std::int64_t column_stride) {
  return ((column_stride == 1 || columns == 1) && (row_stride >= columns || rows == 1)) ||
         ((row_stride == 1 || rows == 1) && (column_stride >= rows || columns == 1));
}

/// The plan of a product without empty operands.
///   can_batch(product, axis)  whether the GEMM takes `axis` as its batch
template <class CanBatch>
Product merge_axes(const MatmulArgs& args, CanBatch&& can_batch) {
  const View &a = args.a, &b = args.b, &c = args.c;
  const int leading = c.ndim - 2;
  Product product;
  product.m = c.size[leading];
  product.n = c.size[leading + 1];
  product.k = a.size[leading + 1];
  product.a_row = a.stride[leading];
  product.a_column = a.stride[leading + 1];
  product.b_row = b.stride[leading];
  product.b_column = b.stride[leading + 1];
  product.c_row = c.stride[leading];
  BatchAxis axes[kMaxDims];  // innermost first
  int count = 0;
  for (int i = leading - 1; i >= 0; --i) {
    const BatchAxis axis{c.size[i], a.stride[i], b.stride[i], c.stride[i]};
    if (axis.size == 1) continue;
    if (count > 0) {
      BatchAxis& inner = axes[count - 1];
      if (axis.a == inner.a * inner.size && axis.b == inner.b * inner.size && axis.c == inner.c * inner.size) {
        inner.size *= axis.size;
        continue;
      }
    }
    axes[count++] = axis;
  }
  // One right matrix for consecutive left ones: their rows are rows of one product.
  if (count > 0 && axes[0].b == 0 && axes[0].a != 0) {
    const BatchAxis& inner = axes[0];
    Product merged = product;
    merged.m *= inner.size;
    if (product.m == 1) {
      merged.a_row = inner.a;
      merged.c_row = inner.c;
      if (product.k == 1) merged.a_column = 1;
    }
    const bool follows =
        product.m == 1 || (inner.a == product.m * product.a_row && inner.c == product.m * product.c_row);
    if (follows && is_matrix(merged.m, merged.k, merged.a_row, merged.a_column)) {
      product = merged;
      std::copy(axes + 1, axes + count, axes);
      --count;
    }
  }
  if (count > 0 && can_batch(product, axes[0])) {
    product.batch = axes[0];
    std::copy(axes + 1, axes + count, axes);
    --count;
  }
  for (int i = count - 1; i >= 0; --i) product.outer[product.outer_count++] = axes[i];
  return product;
}

/// Calls f(offsets) with the element offsets of a, b and c for every step of the outer loop.
template <class F>
void for_each_outer(const Product& product, F&& f) {
  std::int64_t steps = 1;
  for (int i = 0; i < product.outer_count; ++i) steps *= product.outer[i].size;
  for (std::int64_t step = 0; step < steps; ++step) {
    BatchAxis at{1, 0, 0, 0};
    std::int64_t rest = step;
    for (int i = product.outer_count - 1; i >= 0; --i) {
      const BatchAxis& axis = product.outer[i];
      const std::int64_t index = rest % axis.size;
      rest /= axis.size;
      at.a += index * axis.a;
      at.b += index * axis.b;
      at.c += index * axis.c;
    }
    f(at);
  }
}

}  // namespace castor
