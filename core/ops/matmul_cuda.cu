// Matrix products on CUDA, by cuBLASLt in every dtype; the bias is its epilogue (core/ops/gemm_cuda.h).
//
// Delicate: scratch is the same fixed amount for every product, because what the library may use of it decides the
// algorithm.
#include <algorithm>

#include "core/ops/cast.h"
#include "core/ops/gemm_cuda.h"
#include "core/ops/gemm_plan.h"
#include "core/ops/map_cuda.cuh"

namespace castor {
namespace {

Product plan_product(const MatmulArgs& args) {
  return merge_axes(args, [](const Product&, const BatchAxis& axis) { return axis.a >= 0 && axis.b >= 0; });
}

CudaGemmProblem describe(const Product& product, const MatmulArgs& args) {
  CudaGemmProblem problem;
  problem.dtype = args.a.dtype;
  problem.result_dtype = args.c.dtype;
  problem.accumulates = args.accumulates;
  problem.batch = product.batch.size;
  problem.m = product.m;
  problem.n = product.n;
  problem.k = product.k;
  problem.a_batch = product.batch.a;
  problem.a_row = product.a_row;
  problem.a_column = product.a_column;
  problem.b_batch = product.batch.b;
  problem.b_row = product.b_row;
  problem.b_column = product.b_column;
  problem.c_batch = product.batch.c;
  problem.c_row = product.c_row;
  return problem;
}

struct Zero {
  template <class T>
  __device__ T operator()(T) const {
    return T(0);
  }
};

template <class T>
void fill_with_zero(const Cuda& cuda, const View& c) {
  cuda::map<T, T>(cuda, MatmulArgs::kName, {c, c}, Zero{});
}

/// The product where there is nothing to sum: the bias, or zero.
void fill_without_products(const Cuda& cuda, const MatmulArgs& args) {
  if (args.bias.defined()) {
    View source = args.c;
    source.data = args.bias.data;
    for (int i = 0; i < source.ndim; ++i) source.stride[i] = 0;
    source.stride[source.ndim - 1] = 1;
    return run(cuda, CastArgs{source, args.c});
  }
  switch (dtype_size(args.c.dtype)) {
    case 2:
      return fill_with_zero<std::uint16_t>(cuda, args.c);
    case 4:
      return fill_with_zero<std::uint32_t>(cuda, args.c);
    default:
      return fill_with_zero<std::uint64_t>(cuda, args.c);
  }
}

bool has_products(const MatmulArgs& args) { return args.c.numel() != 0 && args.a.size[args.a.ndim - 1] != 0; }

}  // namespace

std::size_t workspace_bytes(const Cuda&, const MatmulArgs& args) { return has_products(args) ? kCudaGemmWorkspace : 0; }

void run(const Cuda& cuda, const MatmulArgs& args) {
  if (args.c.numel() == 0) return;
  if (!has_products(args)) return args.accumulates ? void() : fill_without_products(cuda, args);
  const Product product = plan_product(args);
  const auto at = [](const View& view, std::int64_t offset) {
    return view.as<char>() + offset * static_cast<std::int64_t>(dtype_size(view.dtype));
  };
  for_each_outer(product, [&](const BatchAxis& outer) {
    for (std::int64_t first = 0; first < product.batch.size; first += kMostCudaGemmBatch) {
      const char* const a = at(args.a, outer.a + first * product.batch.a);
      const char* const b = at(args.b, outer.b + first * product.batch.b);
      char* const c = at(args.c, outer.c + first * product.batch.c);
      CudaGemmProblem problem = describe(product, args);
      problem.batch = std::min(product.batch.size - first, kMostCudaGemmBatch);
      problem.has_bias = args.bias.defined();
      multiply(cuda, MatmulArgs::kName, problem, a, b, args.bias.data, c, args.workspace.data);
    }
  });
}

}  // namespace castor
