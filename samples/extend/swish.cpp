// Checks, kernels and gradient of swish. Delicate: `cost` and `run` are found by dispatch through the arguments' own
// namespace, so they stand here and not in the library's.
#include "samples/extend/swish.h"

#include "autograd/graph.h"
#include "autograd/ops/elementwise.h"
#include "core/ops/strided_loop.h"

namespace extend {

using namespace castor;

namespace {

/// Calls f with the C++ type of a dtype this op takes.
template <class F>
void visit(DType dtype, const char* op, F&& f) {
  dtype == DType::f64 ? f(TypeTag<double>{}) : visit_training_float(dtype, op, f);
}

double elements(const View& view) { return static_cast<double>(view.numel()); }

void check(const Tensor& x, const Tensor& beta) {
  if (!is_floating(x.dtype()) || dtype_size(x.dtype()) == 1 || x.dtype() != beta.dtype()) {
    throw DTypeError(cat("swish: expected x and beta of one dtype, f32, bf16, f16 or f64; got ", x, " and ", beta));
  }
  if (!(broadcast_shapes(x.shape(), beta.shape(), "swish") == x.shape())) {
    throw ShapeError(cat("swish: beta must broadcast to x; got x ", x, " and beta ", beta));
  }
}

}  // namespace

Cost cost(const SwishArgs& args) {
  return {8 * elements(args.y), static_cast<double>(args.x.bytes() + args.beta.bytes() + args.y.bytes())};
}

Cost cost(const SwishBackwardArgs& args) {
  const std::size_t bytes = args.x.bytes() + args.beta.bytes() + args.dy.bytes() + args.dx.bytes() + args.dbeta.bytes();
  return {16 * elements(args.dy), static_cast<double>(bytes)};
}

void run(const Cpu&, const SwishArgs& args) {
  visit(args.x.dtype, SwishArgs::kName, [&](auto tag) {
    using T = typename decltype(tag)::type;
    StridedLoop<3>({args.x, args.beta, args.y}).for_each_run([&](const auto* at, const auto* step, std::int64_t n) {
      const T* x = args.x.as<T>() + at[0];
      const T* beta = args.beta.as<T>() + at[1];
      T* y = args.y.as<T>() + at[2];
      for (std::int64_t i = 0; i < n; ++i) {
        y[i * step[2]] = store<T>(Swish::value(load(x[i * step[0]]), load(beta[i * step[1]])));
      }
    });
  });
}

void run(const Cpu&, const SwishBackwardArgs& args) {
  // One derivative for each pass: a layer whose beta is frozen pays for one.
  const auto pass = [&](const View& result, auto slope) {
    if (!result.defined()) return;
    visit(args.x.dtype, SwishBackwardArgs::kName, [&](auto tag) {
      using T = typename decltype(tag)::type;
      StridedLoop<4>({args.x, args.beta, args.dy, result}).for_each_run([&](const auto* at, const auto* step, auto n) {
        const T* x = args.x.as<T>() + at[0];
        const T* beta = args.beta.as<T>() + at[1];
        const T* dy = args.dy.as<T>() + at[2];
        T* out = result.as<T>() + at[3];
        for (std::int64_t i = 0; i < n; ++i) {
          out[i * step[3]] = store<T>(load(dy[i * step[2]]) * slope(load(x[i * step[0]]), load(beta[i * step[1]])));
        }
      });
    });
  };
  pass(args.dx, [](auto x, auto beta) { return Swish::slope_of_x(x, beta); });
  pass(args.dbeta, [](auto x, auto beta) { return Swish::slope_of_beta(x, beta); });
}

autograd::Variable swish(const autograd::Variable& x, const autograd::Variable& beta) {
  const Tensor x_data = x.data(), beta_data = beta.data();
  check(x_data, beta_data);
  const Device device = common_device("swish", {&x_data, &beta_data});
  const Tensor y = Tensor::empty_like(x_data);
  dispatch(device, SwishArgs{x_data.view(), beta_data.expand(x_data.shape()).view(), y.view()});
  return autograd::record("swish", y, {x, beta}, [=](autograd::BackwardContext& context) -> std::vector<Tensor> {
    const Tensor& dy = context.gradients[0];
    const Tensor dx = context.needs[0] ? Tensor::empty_like(x_data) : Tensor{};
    const Tensor dbeta = context.needs[1] ? Tensor::empty_like(x_data) : Tensor{};
    dispatch(device, SwishBackwardArgs{x_data.view(), beta_data.expand(x_data.shape()).view(), dy.view(),
                                       view_or_absent(dx), view_or_absent(dbeta)});
    return {dx, dbeta.defined() ? autograd::sum_to(dbeta, beta_data.shape()) : Tensor{}};
  });
}

}  // namespace extend
