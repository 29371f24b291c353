// Checks and allocation around the activations of linear and conv2d.
#include "core/ops/activation.h"

#include "core/ops/cast.h"
#include "core/ops/elementwise.h"
#include "core/ops/float_check.h"
#include "core/ops/workspace.h"

namespace castor {

UnaryOp unary_op(Activation activation) {
  switch (activation) {
    case Activation::relu:
      return UnaryOp::relu;
    case Activation::gelu_tanh:
      return UnaryOp::gelu_tanh;
    case Activation::gelu_erf:
      return UnaryOp::gelu_erf;
    case Activation::silu:
      return UnaryOp::silu;
    case Activation::none:
      break;
  }
  throw InternalError("unary_op: activation none has no pointwise op");
}

Cost cost(const ActivationArgs& args) {
  return {static_cast<double>(args.x.numel()), static_cast<double>(args.x.bytes() + args.y.bytes())};
}

Cost cost(const BiasBackwardArgs& args) {
  return {3.0 * static_cast<double>(args.dy.numel()),
          static_cast<double>(args.dy.bytes() + args.saved.bytes() + args.dx.bytes() + args.dbias.bytes() +
                              args.y.bytes())};
}

Tensor activate(const Tensor& x, Activation activation, bool keep_input) {
  if (activation == Activation::none) return x;
  Tensor y = keep_input ? empty_like_strided(x) : x;
  dispatch(x.device(), ActivationArgs{x.view(), y.view(), activation});
  return y;
}

std::pair<Tensor, Tensor> bias_backward(Tensor dy, const Tensor& saved, Activation activation, bool needs_bias,
                                        const BiasBackwardWanted& wanted) {
  const auto& [value, scale, bias_place] = wanted;
  const DType dtype = dy.dtype();
  check_float("bias_backward", dy);
  const bool has_activation = activation != Activation::none;
  if (dy.ndim() != 2 || (has_activation && !(saved.defined() && saved.shape() == dy.shape()))) {
    throw ShapeError(
        cat("bias_backward: expected dy [rows, n] and saved of its shape, got dy ", dy, " and saved ", saved));
  }
  if (has_activation && saved.dtype() != dtype) {
    throw DTypeError(cat("bias_backward: expected saved of dy's dtype, got dy ", dy, " and saved ", saved));
  }
  if (!has_activation && !needs_bias) return {std::move(dy), Tensor{}};
  const Device device = has_activation ? common_device("bias_backward", {&dy, &saved}) : dy.device();
  const bool is_reusable = dy.is_contiguous() && dy.storage().use_count() == 1;
  const Tensor gradient = contiguous(dy);
  const Tensor input = has_activation ? contiguous(saved) : Tensor{};
  Tensor dx = !has_activation ? dy : is_reusable ? gradient : Tensor::empty_like(gradient);
  Tensor dbias;
  if (needs_bias) dbias = bias_place.defined() ? bias_place : Tensor::empty({dy.size(1)}, dtype, device);
  if (value != nullptr) *value = has_activation ? Tensor::empty_like(input) : Tensor{};
  if (scale != nullptr) *scale = dtype == DType::f64 ? Tensor{} : Tensor::empty({2}, DType::f32, device);
  BiasBackwardArgs args{gradient.view(),
                        view_or_absent(input),
                        has_activation ? dx.view() : View{},
                        view_or_absent(dbias),
                        {},
                        activation,
                        value != nullptr ? view_or_absent(*value) : View{},
                        scale != nullptr ? view_or_absent(*scale) : View{}};
  const Tensor workspace = workspace_for(device, args);
  args.workspace = view_or_absent(workspace);
  dispatch(device, args);
  return {dx, dbias};
}

}  // namespace castor
