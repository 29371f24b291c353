// Gradients of reductions on CUDA: one pointwise pass over x with the result and its gradient broadcast.
#include "core/ops/map_cuda.cuh"
#include "core/ops/reduce_slope.h"

namespace castor {
namespace {

template <ReduceOp kOp, class C>
struct Slope {
  C factor;
  __device__ C operator()(C x, C y, C dy) const { return factor * dy * reduction::slope<kOp, C>(x, y); }
};

template <class T>
void run_dtype(const Cuda& cuda, const ReduceBackwardArgs& args) {
  using C = decltype(load(T{}));
  const C factor = static_cast<C>(args.factor);
  const auto run_op = [&](auto op) {
    constexpr ReduceOp kOp = decltype(op)::value;
    using Y = std::conditional_t<kOp == ReduceOp::variance, C, T>;
    cuda::map<T, T, Y, T>(cuda, ReduceBackwardArgs::kName, {args.x, args.y, args.dy, args.dx}, Slope<kOp, C>{factor});
  };
  switch (args.op) {
    case ReduceOp::sum:
    case ReduceOp::mean:
      return run_op(std::integral_constant<ReduceOp, ReduceOp::sum>{});
    case ReduceOp::max:
    case ReduceOp::min:
      return run_op(std::integral_constant<ReduceOp, ReduceOp::max>{});
    case ReduceOp::norm1:
      return run_op(std::integral_constant<ReduceOp, ReduceOp::norm1>{});
    case ReduceOp::norm2:
      return run_op(std::integral_constant<ReduceOp, ReduceOp::norm2>{});
    case ReduceOp::norm_inf:
      return run_op(std::integral_constant<ReduceOp, ReduceOp::norm_inf>{});
    case ReduceOp::logsumexp:
      return run_op(std::integral_constant<ReduceOp, ReduceOp::logsumexp>{});
    case ReduceOp::variance:
      return run_op(std::integral_constant<ReduceOp, ReduceOp::variance>{});
  }
}

}  // namespace

void run(const Cuda& cuda, const ReduceBackwardArgs& args) {
  if (args.x.dtype == DType::f64) return run_dtype<double>(cuda, args);
  visit_training_float(args.x.dtype, ReduceBackwardArgs::kName,
                       [&](auto tag) { run_dtype<typename decltype(tag)::type>(cuda, args); });
}

}  // namespace castor
