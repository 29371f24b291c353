// Checks, broadcasting and allocation of the matmul family.
#include "core/ops/matmul.h"

#include <tuple>

#include "core/ops/cast.h"
#include "core/ops/float_check.h"
#include "core/ops/gated.h"
#include "core/ops/workspace.h"

namespace castor {
namespace {

void check_same_dtype(const char* op, const char* what, const Tensor& x, const Tensor& first) {
  if (x.defined() && x.dtype() != first.dtype()) {
    throw DTypeError(
        cat(op, ": expected operands of one dtype, got ", first, " and ", what, ' ', x, "; cast one of them"));
  }
}

void check_bias(const char* op, const Tensor& bias, std::int64_t n) {
  if (bias.defined() && !(bias.shape() == Shape{n}))
    throw ShapeError(cat(op, ": expected a bias of shape [", n, "], got ", bias));
}

/// x itself if a GEMM can read its two inner axes by strides, otherwise a row-major copy.
Tensor readable(const Tensor& x) {
  const int rows = x.ndim() - 2, columns = x.ndim() - 1;
  const auto fits = [&](int unit, int other) {
    return (x.strides()[unit] == 1 || x.shape()[unit] == 1) &&
           (x.strides()[other] >= x.shape()[unit] || x.shape()[other] == 1);
  };
  return x.numel() == 0 || fits(columns, rows) || fits(rows, columns) ? x : clone(x);
}

void multiply(const Tensor& a, const Tensor& b, const Tensor& bias, const Tensor& c, bool accumulates = false) {
  const Tensor dense_bias = bias.defined() ? contiguous(bias) : bias;
  MatmulArgs args{a.view(), b.view(), view_or_absent(dense_bias), c.view(), {}, accumulates};
  const Tensor workspace = workspace_for(c.device(), args);
  args.workspace = view_or_absent(workspace);
  dispatch(c.device(), args);
}

/// All axes but the last as one: [rows, n]. A view where strides allow.
Tensor as_rows(const Tensor& x) {
  const std::int64_t columns = x.shape().back();
  const std::int64_t rows =
      columns == 0 ? Shape(std::span(x.shape().begin(), x.shape().end() - 1)).numel() : x.numel() / columns;
  if (x.ndim() == 2) return x;
  return reshape(x, {rows, columns});
}

Shape with_last(const Shape& shape, std::int64_t last) {
  Shape result = shape;
  result[shape.ndim() - 1] = last;
  return result;
}

}  // namespace

Cost cost(const MatmulArgs& args) {
  const double products = static_cast<double>(args.c.numel()) * static_cast<double>(args.a.size[args.a.ndim - 1]);
  const std::size_t written = (args.accumulates ? 2 : 1) * args.c.bytes();
  return {2 * products, static_cast<double>(args.a.bytes() + args.b.bytes() + args.bias.bytes() + written)};
}

Tensor matmul(const Tensor& a, const Tensor& b, const Tensor& bias) {
  check_float("matmul", a);
  check_same_dtype("matmul", "b is", b, a);
  check_same_dtype("matmul", "bias is", bias, a);
  const Device device = common_device("matmul", {&a, &b, &bias});
  if (a.ndim() < 2 || b.ndim() < 2)
    throw ShapeError(cat("matmul: expected operands with at least 2 axes, got ", a, " and ", b, "; unsqueeze vectors"));
  const std::int64_t m = a.size(-2), k = a.size(-1), n = b.size(-1);
  if (b.size(-2) != k) throw ShapeError(cat("matmul: inner sizes differ: a is ", a, ", b is ", b));
  check_bias("matmul", bias, n);

  const auto leading = [](const Tensor& x) { return Shape(std::span(x.shape().begin(), x.shape().end() - 2)); };
  const auto with_matrix = [](Shape shape, std::int64_t rows, std::int64_t columns) {
    shape.push_back(rows);
    shape.push_back(columns);
    return shape;
  };
  const Shape batch = broadcast_shapes(leading(a), leading(b), "matmul");
  Tensor c = Tensor::empty(with_matrix(batch, m, n), a.dtype(), device);
  multiply(readable(a).expand(with_matrix(batch, m, k)), readable(b).expand(with_matrix(batch, k, n)), bias, c);
  return c;
}

void matmul_into(const Tensor& a, const Tensor& b, const Tensor& c, bool accumulates) {
  check_float("matmul_into", a);
  check_same_dtype("matmul_into", "b is", b, a);
  common_device("matmul_into", {&a, &b, &c});
  if (a.ndim() != 2 || b.ndim() != 2 || b.size(0) != a.size(1) || !(c.shape() == Shape{a.size(0), b.size(1)}) ||
      (c.strides()[1] != 1 && c.size(1) > 1)) {
    throw ShapeError(cat("matmul_into: expected a [m, k], b [k, n] and c [m, n] with neighbouring columns, got a ", a,
                         ", b ", b, " and c ", c));
  }
  const bool is_wide = c.dtype() == (a.dtype() == DType::f64 ? DType::f64 : DType::f32);
  if (!is_wide && (accumulates || c.dtype() != a.dtype())) {
    throw DTypeError(cat("matmul_into: expected a result of the operands' dtype or f32, and to accumulate f32 or f64; ",
                         "got a ", a, " and c ", c));
  }
  multiply(readable(a), readable(b), {}, c, accumulates);
}

Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias, Activation activation, Tensor* saved) {
  check_float("linear", x);
  check_same_dtype("linear", "weight is", weight, x);
  check_same_dtype("linear", "bias is", bias, x);
  common_device("linear", {&x, &weight, &bias});
  if (x.ndim() < 1 || weight.ndim() != 2 || x.shape().back() != weight.size(1)) {
    throw ShapeError(cat("linear: expected x [..., k] and weight [n, k], got x ", x, " and weight ", weight));
  }
  const std::int64_t n = weight.size(0);
  check_bias("linear", bias, n);
  const Tensor rows = readable(as_rows(x.ndim() == 1 ? x.unsqueeze(0) : x));
  Tensor y = Tensor::empty({rows.size(0), n}, x.dtype(), x.device());
  multiply(rows, readable(weight).transpose(0, 1), bias, y);
  const Shape shape = with_last(x.shape(), n);
  if (saved != nullptr) *saved = activation == Activation::none ? Tensor{} : y;
  return activate(y, activation, saved != nullptr).reshape(shape);
}

LinearGradients linear_backward(Tensor dy, const Tensor& x, const Tensor& weight, const Tensor& saved,
                                Activation activation, LinearNeeds needs) {
  check_float("linear_backward", dy);
  check_same_dtype("linear_backward", "x is", x, dy);
  check_same_dtype("linear_backward", "weight is", weight, dy);
  common_device("linear_backward", {&dy, &x, &weight, &saved});
  if (x.ndim() < 1 || weight.ndim() != 2 || x.shape().back() != weight.size(1) ||
      !(dy.shape() == with_last(x.shape(), weight.size(0)))) {
    throw ShapeError(cat("linear_backward: expected x [..., k], weight [n, k] and dy [..., n], got x ", x, ", weight ",
                         weight, " and dy ", dy));
  }
  Tensor flat = as_rows(dy.ndim() == 1 ? dy.unsqueeze(0) : dy);
  dy = {};
  auto [gradient, dbias] =
      bias_backward(std::move(flat), saved, activation, needs.bias, {.bias_place = needs.bias_place});
  gradient = readable(gradient);
  LinearGradients result;
  if (needs.x) {
    Tensor dx = Tensor::empty({gradient.size(0), weight.size(1)}, x.dtype(), x.device());
    multiply(gradient, readable(weight), {}, dx);
    result.x = dx.reshape(x.shape());
  }
  if (needs.weight) {
    result.weight = needs.weight_place.defined() ? needs.weight_place
                                                 : Tensor::empty(weight.shape(), weight.dtype(), weight.device());
    multiply(gradient.transpose(0, 1), readable(as_rows(x.ndim() == 1 ? x.unsqueeze(0) : x)), {}, result.weight);
  }
  result.bias = std::move(dbias);
  return result;
}

FeedForwardGradients feed_forward_backward(Tensor dy, const Tensor& x, const Tensor& fc_weight, const Tensor& input,
                                           HiddenActivation hidden, const Tensor& proj_weight, LinearNeeds fc_needs,
                                           LinearNeeds proj_needs) {
  const char* op = "feed_forward_backward";
  check_float(op, dy);
  check_same_dtype(op, "input is", input, dy);
  check_same_dtype(op, "the second weight is", proj_weight, dy);
  const Device device = common_device(op, {&dy, &x, &fc_weight, &input, &proj_weight});
  const Tensor rows = as_rows(dy.ndim() == 1 ? dy.unsqueeze(0) : dy);
  dy = {};
  if (proj_weight.ndim() != 2 || rows.size(1) != proj_weight.size(0) ||
      !(input.shape() == Shape{rows.size(0), (hidden.is_gated ? 2 : 1) * proj_weight.size(1)})) {
    throw ShapeError(cat(op, ": expected the activation's input ", hidden.is_gated ? "[rows, 2 m]" : "[rows, m]",
                         ", the second weight [n, m] and dy [..., n], got ", input, ", ", proj_weight, " and ", rows));
  }
  FeedForwardGradients result;
  Tensor gradient = Tensor::empty({rows.size(0), proj_weight.size(1)}, input.dtype(), device);
  multiply(readable(rows), readable(proj_weight), {}, gradient);
  {
    Tensor value;
    if (hidden.is_gated) {
      gradient = gated_backward(gradient, input, hidden.activation, {.value = &value});
    } else {
      std::tie(gradient, result.fc.bias) = bias_backward(std::move(gradient), input, hidden.activation, fc_needs.bias,
                                                         {.value = &value, .bias_place = fc_needs.bias_place});
    }
    result.proj =
        linear_backward(rows, value, proj_weight, {}, Activation::none,
                        {false, proj_needs.weight, proj_needs.bias, proj_needs.weight_place, proj_needs.bias_place});
  }
  const Tensor x_rows = as_rows(x.ndim() == 1 ? x.unsqueeze(0) : x);
  LinearGradients by_fc = linear_backward(
      std::move(gradient), x_rows, fc_weight, {}, Activation::none,
      {fc_needs.x, fc_needs.weight, hidden.is_gated && fc_needs.bias, fc_needs.weight_place, fc_needs.bias_place});
  if (by_fc.x.defined()) result.fc.x = by_fc.x.reshape(x.shape());
  if (by_fc.bias.defined()) result.fc.bias = std::move(by_fc.bias);
  result.fc.weight = std::move(by_fc.weight);
  return result;
}

}  // namespace castor
