// Elementwise kernels with one input on CUDA; their slopes are in elementwise_backward_cuda.cu, because together they
// take nvcc long.
#include "core/ops/elementwise.h"
#include "core/ops/map_cuda.cuh"

namespace castor {
namespace {

template <class Op, class T>
struct Value {
  T a, b;
  __device__ T operator()(T x) const { return Op::value(x, a, b); }
};

}  // namespace

void run(const Cuda& cuda, const UnaryArgs& args) {
  const auto compute = [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = decltype(load(T{}));
    visit_unary(args.op, [&](auto op) {
      cuda::map<T, T>(cuda, "unary", {args.x, args.y},
                      Value<decltype(op), C>{static_cast<C>(args.a), static_cast<C>(args.b)});
    });
  };
  args.x.dtype == DType::f64 ? compute(TypeTag<double>{}) : visit_training_float(args.x.dtype, "unary", compute);
}

}  // namespace castor
