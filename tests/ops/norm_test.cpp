// The norms against f64 in both memory orders, their gradients, fused residuals and relu, and the batch statistics.
#include "autograd/ops/norm.h"

#include <cmath>

#include <doctest/doctest.h>

#include "autograd/graph.h"
#include "core/ops/cast.h"
#include "core/ops/elementwise.h"
#include "core/ops/norm.h"
#include "tests/support/op_check.h"

namespace castor {
namespace {

using namespace castor::test;
using autograd::Variable;
using Variables = std::vector<Variable>;

const std::vector<DType> kAllFloats = {DType::f32, DType::bf16, DType::f16, DType::f64};
constexpr double kEps = 1e-3;

Array add_arrays(const Array& x, const Array& y) {
  Array z(x.shape);
  for (std::int64_t i = 0; i < z.numel(); ++i) z[i] = x[i] + y[i];
  return z;
}

/// Rows normalised over the last axis; weight and bias may be null.
Array layer_reference(const Array& x, const Array* weight, const Array* bias, bool is_rms) {
  const std::int64_t n = x.shape.back();
  Array y(x.shape);
  for (std::int64_t row = 0; row < x.numel(); row += n) {
    double mean = 0, squares = 0;
    for (std::int64_t i = 0; i < n && !is_rms; ++i) mean += x[row + i] / static_cast<double>(n);
    for (std::int64_t i = 0; i < n; ++i) squares += (x[row + i] - mean) * (x[row + i] - mean);
    const double rstd = 1 / std::sqrt(squares / static_cast<double>(n) + kEps);
    for (std::int64_t i = 0; i < n; ++i) {
      y[row + i] =
          (x[row + i] - mean) * rstd * (weight != nullptr ? (*weight)[i] : 1) + (bias != nullptr ? (*bias)[i] : 0);
    }
  }
  return y;
}

/// Mean and squared differences of the elements of [N, C, inner] that `group_of(n, c)` puts together.
struct Statistics {
  std::vector<double> mean, variance, count;
};
template <class GroupOf>
Statistics statistics(const Array& x, std::int64_t groups, GroupOf group_of) {
  Statistics result;
  result.mean.resize(static_cast<std::size_t>(groups));
  result.variance = result.count = result.mean;
  const auto each = [&](auto f) {
    for (std::int64_t i = 0; i < x.numel(); ++i) {
      const Shape index = x.index_of(i);
      f(static_cast<std::size_t>(group_of(index[0], index[1])), x[i]);
    }
  };
  each([&](std::size_t g, double value) { result.mean[g] += value, result.count[g] += 1; });
  for (std::size_t g = 0; g < result.mean.size(); ++g) result.mean[g] /= result.count[g];
  each([&](std::size_t g, double value) { result.variance[g] += (value - result.mean[g]) * (value - result.mean[g]); });
  for (std::size_t g = 0; g < result.mean.size(); ++g) result.variance[g] /= result.count[g];
  return result;
}

template <class GroupOf>
Array channel_reference(const Array& x, const Array& weight, const Array& bias, const Statistics& stats,
                        GroupOf group_of) {
  Array y(x.shape);
  for (std::int64_t i = 0; i < x.numel(); ++i) {
    const Shape index = x.index_of(i);
    const std::size_t g = static_cast<std::size_t>(group_of(index[0], index[1]));
    y[i] = (x[i] - stats.mean[g]) / std::sqrt(stats.variance[g] + kEps) * weight[index[1]] + bias[index[1]];
  }
  return y;
}

std::int64_t by_channel(std::int64_t, std::int64_t c) { return c; }

/// x with its channels innermost in memory.
Tensor channels_last(const Tensor& x) {
  Shape to{0}, back{0};
  for (int i = 2; i < x.ndim(); ++i) to.push_back(i);
  to.push_back(1);
  back.push_back(x.ndim() - 1);
  for (int i = 1; i < x.ndim() - 1; ++i) back.push_back(i);
  const Tensor permuted = x.permute(to);
  const Tensor base = Tensor::empty(permuted.shape(), x.dtype(), x.device());
  if (!x.device().is_meta()) {
    const Tensor copy = make_tensor(to_array(permuted), x.dtype(), x.device());
    return copy.permute(back);
  }
  return base.permute(back);
}

struct RowCase {
  Shape x;
  bool has_weight, has_bias;
};
const std::vector<RowCase> kRowCases = {{{7}, true, true},      {{3, 1}, true, true},      {{0, 5}, true, true},
                                        {{4, 33}, true, true},  {{2, 3, 64}, true, false}, {{5, 20}, false, false},
                                        {{5, 20}, false, true}, {{70, 40}, true, true}};

std::vector<OpCase> row_cases(const RowCase& row, int row_operands) {
  OpCase result{"rows", {}};
  for (int i = 0; i < row_operands; ++i) result.operands.push_back({row.x, -2, 3});
  result.operands.push_back({{row.x.back()}, 0.5, 1.5});
  result.operands.push_back({{row.x.back()}, -1, 1});
  return {result};
}

const std::vector<Shape> kChannelShapes = {{4, 3},       {2, 3, 5},    {3, 4, 2, 3}, {2, 1, 4, 4},
                                           {5, 6, 1, 1}, {1, 2, 3, 7}, {2, 18, 5, 5}};

std::vector<OpCase> channel_case(const Shape& shape, bool has_residual = false) {
  OpCase result{"channels", {{shape, -2, 3}, {{shape[1]}, 0.5, 1.5}, {{shape[1]}, -1, 1}}};
  if (has_residual) result.operands.push_back({shape, -2, 2});
  return {result};
}

}  // namespace

TEST_CASE("layer norm and rms norm match their f64 reference with and without affine") {
  for (const bool is_rms : {false, true}) {
    for (const RowCase& row : kRowCases) {
      OpCheck check;
      check.op = is_rms ? "rms_norm" : "layer_norm";
      check.dtypes = kAllFloats;
      check.slack = 2;
      check.scale = 1;
      check.any_threads = true;
      check.run = [&](const Tensors& in) {
        const Tensor weight = row.has_weight ? in[1] : Tensor(), bias = row.has_bias ? in[2] : Tensor();
        return Tensors{is_rms ? rms_norm(in[0], weight, kEps).y : layer_norm(in[0], weight, bias, kEps).y};
      };
      check.reference = [&](const Arrays& in) {
        return Arrays{layer_reference(in[0], row.has_weight ? &in[1] : nullptr,
                                      row.has_bias && !is_rms ? &in[2] : nullptr, is_rms)};
      };
      check_op(check, row_cases(row, 1));
    }
  }
}

TEST_CASE("layer norm with a residual also gives the sum, in one op") {
  for (const bool is_rms : {false, true}) {
    OpCheck check;
    check.op = is_rms ? "add_rms_norm" : "add_layer_norm";
    check.dtypes = kAllFloats;
    check.slack = 2;
    check.scale = 1;
    check.run = [&](const Tensors& in) {
      const LayerNormed normed =
          is_rms ? rms_norm(in[0], in[2], kEps, in[1]) : layer_norm(in[0], in[2], in[3], kEps, in[1]);
      return Tensors{normed.y, normed.sum};
    };
    check.reference = [&](const Arrays& in) {
      const Array sum = add_arrays(in[0], in[1]);
      return Arrays{layer_reference(sum, &in[2], is_rms ? nullptr : &in[3], is_rms), sum};
    };
    for (const RowCase& row : kRowCases) check_op(check, row_cases(row, 2));
  }
}

TEST_CASE("gradients of layer norm and rms norm match differences, with and without residual and affine") {
  for (const bool is_rms : {false, true}) {
    for (const RowCase& row : kRowCases) {
      GradientCheck check = variable_check(is_rms ? "rms_norm" : "layer_norm", [&](const Variables& in) {
        const Variable weight = row.has_weight ? in[1] : Variable(), bias = row.has_bias ? in[2] : Variable();
        return Variables{is_rms ? autograd::rms_norm(in[0], weight, kEps)
                                : autograd::layer_norm(in[0], weight, bias, kEps)};
      });
      check.scale = 1;
      check_gradient(check, row_cases(row, 1));
      GradientCheck fused = variable_check(is_rms ? "add_rms_norm" : "add_layer_norm", [&](const Variables& in) {
        const Variable weight = row.has_weight ? in[2] : Variable(), bias = row.has_bias ? in[3] : Variable();
        const autograd::NormedSum both = is_rms ? autograd::add_rms_norm(in[0], in[1], weight, kEps)
                                                : autograd::add_layer_norm(in[0], in[1], weight, bias, kEps);
        return Variables{both.y, both.sum};
      });
      fused.scale = 1;
      fused.slack = 2;  // the sum is rounded to the dtype, where the reference keeps it
      check_gradient(fused, row_cases(row, 2));
    }
  }
}

TEST_CASE("the residual's sum alone carries a gradient when the norm's result is not used") {
  const Variable x(make_tensor(random_array({3, 4}, 1), DType::f32), true),
      r(make_tensor(random_array({3, 4}, 2), DType::f32), true);
  const Tensor ones = make_tensor(Array({3, 4}, 1), DType::f32);
  autograd::backward({autograd::add_layer_norm(x, r, {}, {}).sum}, {ones}, nullptr);
  check_same_bits("gradient of x", x.grad(), ones);
  check_same_bits("gradient of the residual", r.grad(), ones);
}

TEST_CASE("weight gradients of layer norm have the same bits for any number of threads") {
  const Tensor x = make_tensor(random_array({500, 96}, 1), DType::f32),
               dy = make_tensor(random_array({500, 96}, 2), DType::f32);
  const Tensor weight = make_tensor(random_array({96}, 3), DType::f32);
  const LayerNormed normed = layer_norm(x, weight, {});
  OpCheck check;
  check.op = "layer_norm_backward";
  check.dtypes = {DType::f32};
  check.strided = check.on_meta = false;
  check.any_threads = true;
  check.run = [&](const Tensors& in) {
    const auto here = [&](const Tensor& tensor) { return to_device(tensor, in[0].device()); };
    const NormGradients gradients =
        layer_norm_backward(in[0], here(weight), here(normed.mean), here(normed.rstd), here(dy));
    return Tensors{gradients.x, gradients.weight, gradients.bias};
  };
  check.reference = [&](const Arrays& in) {
    const Tensor wide = make_tensor(in[0], DType::f64), w = make_tensor(to_array(weight), DType::f64);
    const LayerNormed exact = layer_norm(wide, w, {});
    const NormGradients gradients =
        layer_norm_backward(wide, w, exact.mean, exact.rstd, make_tensor(to_array(dy), DType::f64));
    Arrays want = {to_array(gradients.x), to_array(gradients.weight), to_array(gradients.bias)};
    for (Array& array : want) array.dtype = DType::f32;
    return want;
  };
  check_op(check, {{"rows", {{{500, 96}, -1, 1, {}, to_array(x).values}}}});
}

TEST_CASE("batch norm in training matches f64 and gives the statistics, in both memory orders") {
  for (const Shape& shape : kChannelShapes) {
    for (const bool is_last : {false, true}) {
      for (const bool has_residual : {false, true}) {
        for (const bool has_relu : {false, true}) {
          OpCheck check;
          check.op = cat("batch_norm", has_residual ? " + residual" : "", has_relu ? " + relu" : "",
                         is_last ? ", channels-last" : "");
          check.dtypes = kAllFloats;
          check.slack = 4;
          check.scale = 1;
          check.strided = !is_last;
          check.run = [&](const Tensors& in) {
            const Tensor x = is_last ? channels_last(in[0]) : in[0];
            const BatchNormed normed =
                batch_norm_training(x, in[1], in[2], kEps, has_residual ? in[3] : Tensor(), has_relu);
            return Tensors{normed.y, normed.mean, normed.variance};
          };
          check.reference = [&](const Arrays& in) {
            Statistics stats = statistics(in[0], shape[1], by_channel);
            Array y = channel_reference(in[0], in[1], in[2], stats, by_channel);
            for (std::int64_t i = 0; i < y.numel(); ++i) {
              if (has_residual) y[i] += in[3][i];
              if (has_relu) y[i] = std::max(y[i], 0.0);
            }
            Array mean({shape[1]}, stats.mean), variance({shape[1]}, stats.variance);
            for (std::int64_t c = 0; c < shape[1]; ++c) {
              const double count = stats.count[static_cast<std::size_t>(c)];
              variance[c] *= count / (count - 1);
            }
            mean.dtype = variance.dtype = *in[0].dtype == DType::f64 ? DType::f64 : DType::f32;
            return Arrays{y, mean, variance};
          };
          check_op(check, channel_case(shape, has_residual));
        }
      }
    }
  }
}

TEST_CASE("batch norm keeps the memory order of x") {
  const Tensor x = channels_last(make_tensor(random_array({2, 3, 4, 5}, 1), DType::f32));
  const BatchNormed normed = batch_norm_training(x, {}, {});
  CHECK(normed.y.strides() == x.strides());
  CHECK(batch_norm_evaluation(x, {}, {}, normed.mean, normed.variance).strides() == x.strides());
}

TEST_CASE("batch norm in evaluation uses the running averages") {
  for (const Shape& shape : {Shape{4, 3}, Shape{2, 3, 4, 5}, Shape{0, 3, 2}, Shape{1, 3, 1, 1}}) {
    for (const bool has_relu : {false, true}) {
      OpCheck check;
      check.op = "batch_norm_evaluation";
      check.slack = 2;
      check.scale = 1;
      check.run = [&](const Tensors& in) {
        return Tensors{batch_norm_evaluation(in[0], in[1], in[2], in[3], in[4], kEps, {}, has_relu)};
      };
      check.reference = [&](const Arrays& in) {
        Array y = channel_reference(in[0], in[1], in[2], {in[3].values, in[4].values, {}}, by_channel);
        for (double& value : y.values) value = has_relu ? std::max(value, 0.0) : value;
        return Arrays{y};
      };
      OpCase row = channel_case(shape)[0];
      row.operands.push_back({{3}, -1, 1, DType::f32});
      row.operands.push_back({{3}, 0.5, 2, DType::f32});
      check_op(check, {row});
    }
  }
}

TEST_CASE("gradients of batch norm match differences in both memory orders") {
  for (const Shape& shape : kChannelShapes) {
    for (const bool is_last : {false, true}) {
      for (const bool has_residual : {false, true}) {
        for (const bool has_relu : {false, true}) {
          for (const bool is_training : {true, false}) {
            GradientCheck check = variable_check(
                cat("batch_norm", is_training ? "" : " in evaluation", has_residual ? " + residual" : "",
                    has_relu ? " + relu" : "", is_last ? ", channels-last" : ""),
                [&](const Variables& in) {
                  const Variable x =
                      is_last ? autograd::record("channels_last", channels_last(in[0].data()), {in[0]},
                                                 [](autograd::BackwardContext& context) { return context.gradients; })
                              : in[0];
                  const Variable residual = has_residual ? in[3] : Variable();
                  if (is_training)
                    return Variables{autograd::batch_norm_training(x, in[1], in[2], kEps, residual, has_relu).y};
                  const DType dtype = x.dtype() == DType::f64 ? DType::f64 : DType::f32;
                  const Tensor mean = make_tensor(random_array({shape[1]}, 5, -0.5, 1), dtype, x.device());
                  const Tensor variance = make_tensor(random_array({shape[1]}, 6, 0.5, 2), dtype, x.device());
                  return Variables{
                      autograd::batch_norm_evaluation(x, in[1], in[2], mean, variance, kEps, residual, has_relu)};
                });
            check.scale = 1;
            // Low precision moves elements across relu's kink, which no tolerance describes.
            if (has_relu) check.dtypes = {};
            check.strided = !is_last;
            check_gradient(check, channel_case(shape, has_residual));
          }
        }
      }
    }
  }
}

TEST_CASE("batch norm on a large batch has the same bits for any number of threads") {
  for (const bool is_last : {false, true}) {
    OpCheck check;
    check.op = is_last ? "batch_norm, channels-last" : "batch_norm";
    check.dtypes = {DType::f32, DType::bf16};
    check.slack = 4;
    check.scale = 1;
    check.strided = check.on_meta = false;
    check.any_threads = true;
    check.run = [&](const Tensors& in) {
      const Tensor x = is_last ? channels_last(in[0]) : in[0];
      const BatchNormed normed = batch_norm_training(x, in[1], in[2], kEps);
      const NormGradients gradients =
          batch_norm_backward({x, in[1], in[2], normed.mean, normed.rstd, {}, true, false}, x);
      return Tensors{normed.y, gradients.bias, gradients.x};
    };
    check.reference = [&](const Arrays& in) {
      const Array y = channel_reference(in[0], in[1], in[2], statistics(in[0], in[0].shape[1], by_channel), by_channel);
      const Tensor x = make_tensor(in[0], DType::f64), weight = make_tensor(in[1], DType::f64);
      const BatchNormed normed = batch_norm_training(x, weight, {}, kEps);
      const NormGradients gradients =
          batch_norm_backward({x, weight, {}, normed.mean, normed.rstd, {}, true, false}, x);
      Arrays want = {y, to_array(gradients.bias), to_array(gradients.x)};
      for (Array& array : want) array.dtype = in[0].dtype;
      return want;
    };
    check_op(check, channel_case({24, 5, 30, 30}));
    check_op(check, channel_case({40, 70, 7, 7}));
  }
}

TEST_CASE("group norm matches f64 and its gradients match differences in both memory orders") {
  struct Case {
    Shape shape;
    std::int64_t groups;
  };
  for (const Case& row : std::vector<Case>{{{3, 4}, 2},
                                           {{2, 6, 5}, 3},
                                           {{2, 6, 3, 4}, 6},
                                           {{2, 6, 3, 4}, 1},
                                           {{0, 4, 3}, 2},
                                           {{1, 1, 1, 9}, 1},
                                           {{2, 300, 3}, 2}}) {
    for (const bool is_last : {false, true}) {
      const auto group_of = [&](std::int64_t n, std::int64_t c) {
        return n * row.groups + c / (row.shape[1] / row.groups);
      };
      OpCheck check;
      check.op = cat("group_norm of ", row.groups, " groups", is_last ? ", channels-last" : "");
      check.dtypes = kAllFloats;
      check.slack = 2;
      check.scale = 1;
      check.strided = !is_last;
      check.any_threads = true;
      check.run = [&](const Tensors& in) {
        return Tensors{group_norm(is_last ? channels_last(in[0]) : in[0], row.groups, in[1], in[2], kEps).y};
      };
      check.reference = [&](const Arrays& in) {
        const Statistics stats = statistics(in[0], row.shape[0] * row.groups, group_of);
        return Arrays{channel_reference(in[0], in[1], in[2], stats, group_of)};
      };
      check_op(check, channel_case(row.shape));
      GradientCheck gradient = variable_check(check.op, [&](const Variables& in) {
        const Variable x = is_last
                               ? autograd::record("channels_last", channels_last(in[0].data()), {in[0]},
                                                  [](autograd::BackwardContext& context) { return context.gradients; })
                               : in[0];
        return Variables{autograd::group_norm(x, row.groups, in[1], in[2], kEps)};
      });
      gradient.scale = 1;
      gradient.strided = !is_last;
      check_gradient(gradient, channel_case(row.shape));
    }
  }
}

TEST_CASE("norms refuse wrong shapes, dtypes and tiny training batches by name") {
  const Tensor x = Tensor::zeros({2, 3}, DType::f32), three = Tensor::zeros({3}, DType::f32);
  CHECK_THROWS_AS(layer_norm(x, Tensor::zeros({2}, DType::f32), {}), ShapeError);
  CHECK_THROWS_AS(layer_norm(x, Tensor::zeros({3}, DType::bf16), {}), DTypeError);
  CHECK_THROWS_AS(layer_norm(Tensor::zeros({2, 0}, DType::f32), {}, {}), ShapeError);
  CHECK_THROWS_AS(layer_norm(Tensor::zeros({}, DType::f32), {}, {}), ShapeError);
  CHECK_THROWS_AS(layer_norm(Tensor::zeros({2, 3}, DType::i32), {}, {}), DTypeError);
  CHECK_THROWS_AS(rms_norm(x, three, 1e-6, Tensor::zeros({3, 3}, DType::f32)), ShapeError);
  CHECK_THROWS_AS(batch_norm_training(Tensor::zeros({1, 3}, DType::f32), {}, {}), ShapeError);
  CHECK_THROWS_AS(batch_norm_training(Tensor::zeros({3}, DType::f32), {}, {}), ShapeError);
  CHECK_THROWS_AS(batch_norm_training(x, Tensor::zeros({2}, DType::f32), {}), ShapeError);
  CHECK_THROWS_AS(batch_norm_evaluation(x, {}, {}, three, Tensor::zeros({3}, DType::f64)), DTypeError);
  CHECK_THROWS_AS(batch_norm_evaluation(x, {}, {}, Tensor::zeros({4}, DType::f32), three), ShapeError);
  CHECK_THROWS_AS(group_norm(x, 2, {}, {}), ShapeError);
  CHECK_THROWS_AS(group_norm(x, 0, {}, {}), ShapeError);
  CHECK_THROWS_AS(layer_norm_backward(x, {}, {}, Tensor::zeros({3}, DType::f32), x), ShapeError);
}

}  // namespace castor
