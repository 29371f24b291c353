// oneDNN behind plain pointers and sizes: the files named onednn* are the only ones that see its headers, because its
// major versions differ in all that matters here. A wrapper looks a primitive up by everything that picks its code
// (sizes, strides, dtype, epilogue, threads), so a step in its steady state makes nothing.
//
// Delicate: the returned objects belong to the calling thread and live until its next lookup. All scratch memory comes
// from the caller (`workspace_bytes`, any alignment of at least 64), so that the planner sees it. Sizes must not be 0.
// Activations are not fused into primitives: oneDNN's relu turns NaN into 0, and its gelu has other bits than ours.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "core/base/dtype.h"

namespace castor::onednn {

/// True where oneDNN computes in `dtype` (f32, bf16, f16) on this processor; elsewhere callers convert to f32.
bool computes_in(DType dtype);

/// "oneDNN 2.6.3": what is loaded.
std::string version();

/// The instruction set that oneDNN generates code for: "avx2", "avx512_core", "avx512_core_amx", ... Part of the
/// numerics key.
std::string_view instruction_set();

/// How a GEMM is computed. The results differ in rounding only.
enum class GemmAlgorithm : std::uint8_t {
  automatic,       ///< what `choose` says
  first,           ///< oneDNN's first choice for the strides given
  packed_weights,  ///< b is first copied to the layout that oneDNN likes best
  blas             ///< oneDNN's BLAS-like kernel; the first choice where there is no other
};

/// c = a b + bias for `batch` pairs of matrices; strides in elements. In a and b one of the two inner strides is 1 (or
/// its size is 1) and the other at least that size; c is row-major. A batch stride of 0 repeats the operand.
struct GemmProblem {
  DType dtype = DType::f32;  ///< of all operands: f32 or bf16, as computes_in allows; sums are f32
  std::int64_t batch = 1, m = 0, n = 0, k = 0;
  std::int64_t a_batch = 0, a_row = 0, a_column = 1;
  std::int64_t b_batch = 0, b_row = 0, b_column = 1;
  std::int64_t c_batch = 0, c_row = 0;
  bool has_bias = false;  ///< [n], of `dtype`
  GemmAlgorithm algorithm = GemmAlgorithm::automatic;
};

class Gemm {
 public:
  virtual ~Gemm() = default;
  virtual std::size_t workspace_bytes() const = 0;
  virtual std::string_view implementation() const = 0;  ///< oneDNN's name, for tables
  /// `bias` and `workspace` may be null where there is none.
  virtual void run(const void* a, const void* b, const void* bias, void* c, void* workspace) = 0;
};

/// The fastest algorithm for `problem`: a function of its sizes, strides and dtype and of the instruction set, from the
/// table that tests/bench/gemm_choices.cpp prints.
GemmAlgorithm choose(const GemmProblem& problem);

/// The primitive for `problem`. Throws InternalError when oneDNN has none.
Gemm& gemm(const GemmProblem& problem);

/// A 2-d convolution in f32. Activations lie channels-last without gaps, weights as [groups * out, in, kh, kw]
/// row-major, where `in` and `out` count the channels of one group.
struct ConvProblem {
  std::int64_t batch = 0, groups = 1, in_channels = 0, out_channels = 0;  ///< channels of all groups together
  std::int64_t in_height = 0, in_width = 0, out_height = 0, out_width = 0;
  std::int64_t kernel_height = 0, kernel_width = 0;
  std::int64_t stride_height = 1, stride_width = 1;
  std::int64_t padding_height = 0, padding_width = 0;  ///< before; what is needed after follows from the sizes
  std::int64_t dilation_height = 1, dilation_width = 1;
  bool has_bias = false;  ///< forward only
};

/// How a gradient by data is computed. The results differ in rounding only.
enum class ConvAlgorithm : std::uint8_t {
  automatic,  ///< the faster one of those below, by geometry and instruction set
  direct,     ///< oneDNN's backward primitive
  turned      ///< a forward convolution of dy with turned weights; stride 1 and padding below the kernel's reach only
};

/// One of the three directions of a convolution.
class Conv {
 public:
  virtual ~Conv() = default;
  virtual std::size_t workspace_bytes() const = 0;
  virtual std::string_view implementation() const = 0;
  /// forward: x, weight, bias -> y. backward by data: `x` takes dx and `y` gives dy. backward by weights: `x` and `y`
  /// give x and dy, `weight` takes its gradient. What is only read is not written; `bias` is null where there is none.
  virtual void run(void* x, void* weight, void* bias, void* y, void* workspace) = 0;
};

/// The primitive of a direction. Throws InternalError when oneDNN has none.
Conv& conv_forward(const ConvProblem& problem);
Conv& conv_backward_data(const ConvProblem& problem, ConvAlgorithm algorithm = ConvAlgorithm::automatic);
Conv& conv_backward_weights(const ConvProblem& problem);

}  // namespace castor::onednn
