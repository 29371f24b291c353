// The slopes of the elementwise ops with one input, times the gradient, on CUDA.
#include "core/ops/elementwise.h"
#include "core/ops/map_cuda.cuh"

namespace castor {
namespace {

/// The slope reads x or y, never both: the same value stands for the one it ignores.
template <class Op, class T>
struct Slope {
  T a, b;
  __device__ T operator()(T saved, T dy) const { return dy * Op::slope(saved, saved, a, b); }
};

}  // namespace

void run(const Cuda& cuda, const UnaryBackwardArgs& args) {
  const View& saved = args.y.defined() ? args.y : args.x;
  const auto compute = [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = decltype(load(T{}));
    visit_unary(args.op, [&](auto op) {
      cuda::map<T, T, T>(cuda, "unary_backward", {saved, args.dy, args.dx},
                         Slope<decltype(op), C>{static_cast<C>(args.a), static_cast<C>(args.b)});
    });
  };
  saved.dtype == DType::f64 ? compute(TypeTag<double>{}) : visit_training_float(saved.dtype, "unary_backward", compute);
}

}  // namespace castor
