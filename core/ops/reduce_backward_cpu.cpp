// Gradients of reductions on the CPU: one pointwise pass over x with the result and its gradient broadcast.
//
// Delicate: rows of x see one y and one dy, so those have stride 0 along most runs; a constant operand gets a loop of
// its own.
#include "core/ops/reduce_slope.h"
#include "core/ops/strided_loop.h"

namespace castor {
namespace {

template <ReduceOp kOp, class T>
void run_op(const ReduceBackwardArgs& args) {
  using C = decltype(load(T{}));
  using Y = std::conditional_t<kOp == ReduceOp::variance, C, T>;
  const StridedLoop<4> loop({args.x, args.y, args.dy, args.dx});
  const C factor = static_cast<C>(args.factor);
  loop.for_each_run([&](const std::int64_t* at, const std::int64_t* step, std::int64_t n) {
    const T* x = args.x.as<T>() + at[0];
    const Y* y = args.y.as<Y>() + at[1];
    const T* dy = args.dy.as<T>() + at[2];
    T* dx = args.dx.as<T>() + at[3];
    if (step[0] == 1 && step[1] == 0 && step[2] == 0 && step[3] == 1) {
      const C y0 = load(y[0]), scaled = factor * load(dy[0]);
#pragma GCC ivdep
      for (std::int64_t i = 0; i < n; ++i) dx[i] = store<T>(scaled * reduction::slope<kOp, C>(load(x[i]), y0));
    } else {
      for (std::int64_t i = 0; i < n; ++i) {
        dx[i * step[3]] = store<T>(factor * load(dy[i * step[2]]) *
                                   reduction::slope<kOp, C>(load(x[i * step[0]]), load(y[i * step[1]])));
      }
    }
  });
}

template <class T>
void run_dtype(const ReduceBackwardArgs& args) {
  switch (args.op) {
    case ReduceOp::sum:
    case ReduceOp::mean:
      return run_op<ReduceOp::sum, T>(args);
    case ReduceOp::max:
    case ReduceOp::min:
      return run_op<ReduceOp::max, T>(args);
    case ReduceOp::norm1:
      return run_op<ReduceOp::norm1, T>(args);
    case ReduceOp::norm2:
      return run_op<ReduceOp::norm2, T>(args);
    case ReduceOp::norm_inf:
      return run_op<ReduceOp::norm_inf, T>(args);
    case ReduceOp::logsumexp:
      return run_op<ReduceOp::logsumexp, T>(args);
    case ReduceOp::variance:
      return run_op<ReduceOp::variance, T>(args);
  }
}

}  // namespace

void run(const Cpu&, const ReduceBackwardArgs& args) {
  if (args.x.dtype == DType::f64) {
    run_dtype<double>(args);
  } else {
    visit_training_float(args.x.dtype, "reduce_backward",
                         [&](auto tag) { run_dtype<typename decltype(tag)::type>(args); });
  }
}

}  // namespace castor
