// GEMM primitives. An entry holds the primitive and memory handles whose addresses are set at each run: rebuilding
// those would cost as much as a 64 x 64 product.
#include <dnnl.hpp>
#include <string>

#include "core/base/error.h"
#include "core/base/parallel.h"
#include "core/ops/onednn.h"
#include "core/ops/onednn_runtime.h"

namespace castor::onednn {
namespace {

using dnnl::memory;

memory::data_type data_type(DType dtype) {
  return dtype == DType::bf16 ? memory::data_type::bf16 : memory::data_type::f32;
}

/// A matrix or a batch of them; a batch stride of 0 becomes a size of 1, which oneDNN repeats.
memory::desc matrix(const GemmProblem& problem, std::int64_t rows, std::int64_t columns, std::int64_t batch_stride,
                    std::int64_t row_stride, std::int64_t column_stride) {
  const auto type = data_type(problem.dtype);
  // Where a size is 1 its stride is free: the one of a dense matrix keeps oneDNN on its fast paths.
  const bool is_by_columns = column_stride != 1 && row_stride == 1;
  if (rows == 1 && !is_by_columns) row_stride = std::max<std::int64_t>(columns, 1);
  if (columns == 1 && is_by_columns) column_stride = std::max<std::int64_t>(rows, 1);
  if (problem.batch == 1) return {{rows, columns}, type, memory::dims{row_stride, column_stride}};
  const std::int64_t batch = batch_stride == 0 ? 1 : problem.batch;
  const std::int64_t stride = batch == 1 ? std::max(rows * row_stride, columns * column_stride) : batch_stride;
  return {{batch, rows, columns}, type, memory::dims{stride, row_stride, column_stride}};
}

class GemmEntry final : public Gemm {
 public:
  explicit GemmEntry(const GemmProblem& problem) {
    const GemmAlgorithm algorithm = problem.algorithm == GemmAlgorithm::automatic ? choose(problem) : problem.algorithm;
    const memory::desc a = matrix(problem, problem.m, problem.k, problem.a_batch, problem.a_row, problem.a_column);
    const memory::desc b = matrix(problem, problem.k, problem.n, problem.b_batch, problem.b_row, problem.b_column);
    const memory::desc c = matrix(problem, problem.m, problem.n, problem.c_batch, problem.c_row, 1);
    const bool is_flat = problem.batch == 1;
    const memory::dims bias_sizes = is_flat ? memory::dims{1, problem.n} : memory::dims{1, 1, problem.n};
    const memory::dims bias_strides = is_flat ? memory::dims{problem.n, 1} : memory::dims{problem.n, problem.n, 1};
    const memory::desc bias =
        problem.has_bias ? memory::desc(bias_sizes, data_type(problem.dtype), bias_strides) : memory::desc();
    const bool is_packed = algorithm == GemmAlgorithm::packed_weights;
    const memory::desc packed(b.dims(), data_type(problem.dtype), memory::format_tag::any);

    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    const memory::desc& weights = is_packed ? packed : b;
    const auto description =
        problem.has_bias ? dnnl::matmul::desc(a, weights, bias, c) : dnnl::matmul::desc(a, weights, c);
    dnnl::matmul::primitive_desc chosen(description, attributes, engine());
    if (algorithm == GemmAlgorithm::blas) {
      dnnl::matmul::primitive_desc next(description, attributes, engine());
      do {
        if (std::string(next.impl_info_str()).starts_with("gemm:")) {
          chosen = next;
          break;
        }
      } while (next.next_impl());
    }
    implementation_ = chosen.impl_info_str();
    primitive_ = dnnl::matmul(chosen);
    scratchpad_bytes_ = chosen.scratchpad_desc().get_size();

    a_ = memory(a, engine(), DNNL_MEMORY_NONE);
    b_ = memory(b, engine(), DNNL_MEMORY_NONE);
    c_ = memory(c, engine(), DNNL_MEMORY_NONE);
    scratchpad_ = memory(chosen.scratchpad_desc(), engine(), DNNL_MEMORY_NONE);
    weights_ = b_;
    if (chosen.weights_desc() != b) {
      weights_ = memory(chosen.weights_desc(), engine(), DNNL_MEMORY_NONE);
      packed_bytes_ = (chosen.weights_desc().get_size() + 255) / 256 * 256;
      pack_ = dnnl::reorder(dnnl::reorder::primitive_desc(b_, weights_));
    }
    arguments_ = {
        {DNNL_ARG_SRC, a_}, {DNNL_ARG_WEIGHTS, weights_}, {DNNL_ARG_DST, c_}, {DNNL_ARG_SCRATCHPAD, scratchpad_}};
    if (problem.has_bias) {
      bias_ = memory(bias, engine(), DNNL_MEMORY_NONE);
      arguments_.emplace(DNNL_ARG_BIAS, bias_);
    }
  }

  std::size_t workspace_bytes() const override { return packed_bytes_ + scratchpad_bytes_; }
  std::string_view implementation() const override { return implementation_; }

  void run(const void* a, const void* b, const void* bias, void* c, void* workspace) override {
    // oneDNN takes inputs as non-const handles and only reads them.
    a_.set_data_handle(const_cast<void*>(a));
    b_.set_data_handle(const_cast<void*>(b));
    c_.set_data_handle(c);
    if (bias_) bias_.set_data_handle(const_cast<void*>(bias));
    if (scratchpad_bytes_ != 0) scratchpad_.set_data_handle(static_cast<char*>(workspace) + packed_bytes_);
    if (pack_) {
      weights_.set_data_handle(workspace);
      pack_.execute(stream(), {{DNNL_ARG_FROM, b_}, {DNNL_ARG_TO, weights_}});
    }
    primitive_.execute(stream(), arguments_);
  }

 private:
  dnnl::matmul primitive_;
  dnnl::reorder pack_;
  memory a_, b_, weights_, bias_, c_, scratchpad_;
  std::unordered_map<int, memory> arguments_;
  std::size_t scratchpad_bytes_ = 0, packed_bytes_ = 0;
  std::string implementation_;
};

}  // namespace

GemmAlgorithm choose(const GemmProblem& p) {
  // Without AVX-512 oneDNN has one kernel, and with bf16 its first choice is the one for matrix registers.
  if (p.dtype != DType::f32 || p.batch > 1 || !instruction_set().starts_with("avx512")) return GemmAlgorithm::first;
  const bool is_a_transposed = p.a_row == 1 && p.a_column != 1, is_b_transposed = p.b_row == 1 && p.b_column != 1;
  constexpr std::int64_t kManyRows = 1024;
  if (is_a_transposed) {
    // Weight gradients. Packing pays where many rows are summed into a large result.
    return p.k >= kManyRows && p.m * p.n >= 400'000 ? GemmAlgorithm::packed_weights : GemmAlgorithm::blas;
  }
  if (is_b_transposed) {
    if (p.m < kManyRows) return GemmAlgorithm::first;
    return p.n >= 1024 ? GemmAlgorithm::blas : GemmAlgorithm::packed_weights;
  }
  // Data gradients. A narrow b is cheap to pack.
  return p.m >= kManyRows && p.n <= 512 ? GemmAlgorithm::packed_weights : GemmAlgorithm::blas;
}

Gemm& gemm(const GemmProblem& problem) {
  thread_local Cache<GemmEntry> cache;
  const Key key{static_cast<std::int64_t>(problem.dtype),
                static_cast<std::int64_t>(problem.algorithm),
                problem.has_bias,
                num_threads(),
                problem.batch,
                problem.m,
                problem.n,
                problem.k,
                problem.a_batch,
                problem.a_row,
                problem.a_column,
                problem.b_batch,
                problem.b_row,
                problem.b_column,
                problem.c_batch,
                problem.c_row};
  return cache.find_or_make(key, [&] {
    try {
      return std::make_unique<GemmEntry>(problem);
    } catch (const dnnl::error& failure) {
      throw InternalError(cat("matmul: oneDNN has no primitive for ", problem.dtype, " ", problem.batch, " x [",
                              problem.m, ",", problem.k, "] x [", problem.k, ",", problem.n, "]: ", failure.what()));
    }
  });
}

}  // namespace castor::onednn
