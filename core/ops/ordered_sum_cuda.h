// Sums of several arrays on a GPU, term by term in a fixed order: what the owner of a gradient's piece does with the
// contributions of all ranks. On the CPU ranks add while bytes arrive (dist/combine.h), so this is no op of its own.
#pragma once

#include <cstdint>
#include <span>

#include "core/base/dtype.h"
#include "core/device/device.h"

namespace castor {

/// sum = ([sum +] terms[0] + terms[1] + ...) scale, one by one in f32, rounded once to the sum's dtype.
struct OrderedSum {
  std::span<const void* const> terms;  ///< addresses on the device; at most kMostOrderedTerms
  DType dtype = DType::f32;            ///< of the terms: f32, bf16 or f16
  void* sum = nullptr;                 ///< may be one of the terms
  DType sum_dtype = DType::f32;        ///< f32, or the terms'
  std::int64_t count = 0;              ///< elements
  bool accumulates = false;            ///< the sum's old value is the first term
  double scale = 1;                    ///< 1: the sum stays as it is; else as by UnaryOp::affine, in f32
};

inline constexpr std::size_t kMostOrderedTerms = 256;

/// Launches it on the given stream. Throws DTypeError for other dtypes, ShapeError for no or too many terms.
void run_ordered_sum(const Cuda& cuda, const OrderedSum& sum);

}  // namespace castor
