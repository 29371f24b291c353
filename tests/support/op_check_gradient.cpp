// The gradient side of the case tables: central differences in f64 (or f32), then low precision against it.
//
// Delicate: differences are taken of one number, the sum of all outputs times fixed random weights, summed in f64 here,
// so that an f32 op is measured and not the sum.
#include <algorithm>
#include <cmath>

#include <doctest/doctest.h>

#include "autograd/graph.h"
#include "core/base/philox.h"
#include "tests/support/long_run.h"
#include "tests/support/op_check.h"

namespace castor::test {
namespace {

// A short run is there for the kernels, which one direction launches all; each slope takes two forward passes.
std::int64_t checked_elements() { return short_run() ? 0 : 16; }
int directions() { return short_run() ? 1 : 2; }

bool is_differentiable(const Operand& operand) {
  return !operand.dtype || (is_floating(*operand.dtype) && dtype_size(*operand.dtype) > 1);
}

std::uint64_t seed_of(const OpCase& row, std::size_t operand) {
  std::uint64_t seed = hash_combine(hash_text(row.name), operand);
  for (const std::int64_t size : row.operands[operand].shape)
    seed = hash_combine(seed, static_cast<std::uint64_t>(size));
  return seed;
}

std::string text_of(const OpCase& row) {
  std::string text = row.name;
  for (const Operand& operand : row.operands) text += cat(" ", operand.shape);
  return text;
}

class NumericGradient {
 public:
  NumericGradient(const GradientCheck& check, const OpCase& row, Device device, DType dtype)
      : check_(check), row_(row), device_(device), dtype_(dtype) {
    for (std::size_t i = 0; i < row.operands.size(); ++i) {
      const Operand& operand = row.operands[i];
      const Array values = operand.values.empty()
                               ? random_array(operand.shape, seed_of(row, i), operand.low, operand.high)
                               : Array(operand.shape, operand.values);
      inputs_.push_back(to_array(make_tensor(values, operand.dtype.value_or(dtype), device)));
    }
    const Tensors outputs = check_.forward(tensors(inputs_));
    for (std::size_t i = 0; i < outputs.size(); ++i)
      weights_.push_back(random_array(outputs[i].shape(), hash_combine(77, i)));
  }

  const Arrays& inputs() const { return inputs_; }
  const Arrays& weights() const { return weights_; }

  Tensors backward() const {
    Tensors gradients;
    for (const Array& weight : weights_) gradients.push_back(make_tensor(weight, dtype_, device_));
    return check_.backward(tensors(inputs_), gradients);
  }

  /// d/dt of the weighted sum along inputs[operand] + t * direction, at t = 0, with the absolute noise of the
  /// difference.
  struct Slope {
    double value;
    double noise;
  };
  Slope slope(std::size_t operand, const Array& direction) const {
    const double step = check_.step > 0 ? check_.step : dtype_ == DType::f64 ? 1e-5 : 1.0 / 64;
    Arrays plus = inputs_, minus = inputs_;
    double distance = 0, length = 0;
    for (std::int64_t i = 0; i < direction.numel(); ++i) {
      plus[operand][i] += step * direction[i];
      minus[operand][i] -= step * direction[i];
    }
    // In f32 the points are rounded: use the distance that is really between them.
    const Tensors high = tensors(plus), low = tensors(minus);
    const Array above = to_array(high[operand]), below = to_array(low[operand]);
    for (std::int64_t i = 0; i < direction.numel(); ++i) {
      distance += (above[i] - below[i]) * direction[i];
      length += direction[i] * direction[i];
    }
    double noise_high = 0, noise_low = 0;
    const double up = weighted_sum(check_.forward(high), noise_high),
                 down = weighted_sum(check_.forward(low), noise_low);
    const double spread = length > 0 ? distance / length : 1;
    const double unit = dtype_ == DType::f64 ? 1e-15 : 1.2e-7;
    return {(up - down) / spread, unit * (noise_high + noise_low) / spread};
  }

 private:
  Tensors tensors(const Arrays& arrays) const {
    Tensors result;
    for (std::size_t i = 0; i < arrays.size(); ++i) {
      result.push_back(make_tensor(arrays[i], row_.operands[i].dtype.value_or(dtype_), device_));
    }
    return result;
  }

  double weighted_sum(const Tensors& outputs, double& noise) const {
    double sum = 0;
    for (std::size_t o = 0; o < outputs.size(); ++o) {
      const Array values = to_array(outputs[o]);
      double squares = 0;
      for (std::int64_t i = 0; i < values.numel(); ++i) {
        const double term = values[i] * weights_[o][i];
        sum += term;
        squares += term * term;
      }
      noise += std::sqrt(squares) * 4;
    }
    return sum;
  }

  const GradientCheck& check_;
  const OpCase& row_;
  Device device_;
  DType dtype_;
  Arrays inputs_;
  Arrays weights_;
};

double dot(const Array& a, const Array& b) {
  double sum = 0;
  for (std::int64_t i = 0; i < a.numel(); ++i) sum += a[i] * b[i];
  return sum;
}

void compare_slope(const std::string& what, double analytic, const NumericGradient::Slope& numeric, double scale,
                   double allowed_relative) {
  const double allowed =
      allowed_relative * std::max({std::abs(analytic), std::abs(numeric.value), scale}) + numeric.noise;
  CHECK_MESSAGE(std::abs(analytic - numeric.value) <= allowed, what, ": backward gives ", analytic,
                ", differences give ", numeric.value, " (allowed difference ", allowed, ")");
}

void check_numeric(const GradientCheck& check, const OpCase& row, const std::string& what,
                   const NumericGradient& numeric, const Tensors& gradients) {
  const double allowed = (check.numeric_dtype == DType::f64 ? 1e-6 : 5e-3) * check.slack;
  for (std::size_t i = 0; i < row.operands.size(); ++i) {
    if (!is_differentiable(row.operands[i]) || !gradients[i].defined()) continue;
    const Array gradient = to_array(gradients[i]);
    REQUIRE_MESSAGE(gradient.shape == row.operands[i].shape, what, ": the gradient of operand ", i, " is ",
                    gradients[i].describe());
    const std::int64_t count = gradient.numel();
    if (count == 0) continue;
    const double scale = std::sqrt(dot(gradient, gradient) / static_cast<double>(count));
    const std::int64_t checked = std::min(count, checked_elements());
    for (std::int64_t k = 0; k < checked; ++k) {
      const std::int64_t at = checked == count ? k : k * (count - 1) / (checked - 1);
      Array direction(gradient.shape);
      direction[at] = 1;
      compare_slope(cat(what, " | operand ", i, " at ", gradient.index_of(at)), gradient[at],
                    numeric.slope(i, direction), scale, allowed);
    }
    for (int k = 0; k < directions(); ++k) {
      const Array direction =
          random_array(gradient.shape, hash_combine(seed_of(row, i), static_cast<std::uint64_t>(1000 + k)));
      compare_slope(cat(what, " | operand ", i, " along random direction ", k), dot(gradient, direction),
                    numeric.slope(i, direction), scale * std::sqrt(dot(direction, direction)), allowed);
    }
  }
}

/// Backward in a low precision against backward in the numeric dtype, both on the values that the low precision can
/// hold.
void check_low_precision(const GradientCheck& check, const OpCase& row, Device device, DType dtype, Layout layout) {
  const std::string what =
      cat(check.op, " backward | ", text_of(row), " | ", dtype, " | layout ", static_cast<int>(layout), " | ", device);
  INFO(what);
  Tensors low, high, low_gradients, high_gradients;
  for (std::size_t i = 0; i < row.operands.size(); ++i) {
    const Operand& operand = row.operands[i];
    const Array values = operand.values.empty()
                             ? random_array(operand.shape, seed_of(row, i), operand.low, operand.high)
                             : Array(operand.shape, operand.values);
    low.push_back(make_tensor(values, operand.dtype.value_or(dtype), device, layout));
    high.push_back(make_tensor(to_array(low.back()), operand.dtype.value_or(check.numeric_dtype), device));
  }
  const Tensors outputs = check.forward(low);
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    low_gradients.push_back(
        make_tensor(random_array(outputs[i].shape(), hash_combine(77, i)), outputs[i].dtype(), device, layout));
    high_gradients.push_back(make_tensor(to_array(low_gradients.back()), check.numeric_dtype, device));
  }
  const Tensors got = check.backward(low, low_gradients);
  const Tensors want = check.backward(high, high_gradients);
  REQUIRE_MESSAGE(got.size() == want.size(), what, ": ", got.size(), " and ", want.size(), " gradients");
  for (std::size_t i = 0; i < got.size(); ++i) {
    REQUIRE_MESSAGE(got[i].defined() == want[i].defined(), what, ": gradient ", i, " is there in one dtype only");
    if (!got[i].defined() || !is_differentiable(row.operands[i])) continue;
    const DType own = row.operands[i].dtype.value_or(dtype);
    check_close(cat(what, " | gradient ", i), got[i], to_array(want[i]), own, 4 * tolerance(dtype) * check.slack,
                check.scale);
  }
}

}  // namespace

GradientCheck variable_check(std::string op, const VariableFunction& function) {
  GradientCheck check;
  check.op = std::move(op);
  check.forward = [function](const Tensors& inputs) {
    const autograd::NoGradScope no_grad;
    std::vector<autograd::Variable> variables;
    for (const Tensor& input : inputs) variables.emplace_back(input);
    Tensors results;
    for (const autograd::Variable& result : function(variables)) results.push_back(result.data());
    return results;
  };
  check.backward = [function](const Tensors& inputs, const Tensors& output_gradients) {
    std::vector<autograd::Variable> leaves;
    for (const Tensor& input : inputs) leaves.emplace_back(input, is_floating(input.dtype()));
    autograd::backward(function(leaves), output_gradients, nullptr);
    Tensors gradients;
    for (const autograd::Variable& leaf : leaves) gradients.push_back(leaf.requires_grad() ? leaf.grad() : Tensor());
    return gradients;
  };
  return check;
}

void check_gradient(const GradientCheck& check, const std::vector<OpCase>& cases) {
  for (const Device device : test_devices()) {
    for (const OpCase& row : cases) {
      const std::string what = cat(check.op, " gradient | ", text_of(row), " | ", check.numeric_dtype, " | ", device);
      {
        INFO(what);
        const NumericGradient numeric(check, row, device, check.numeric_dtype);
        const Tensors gradients = numeric.backward();
        REQUIRE_MESSAGE(gradients.size() == row.operands.size(), what, ": ", gradients.size(), " gradients for ",
                        row.operands.size(), " operands");
        check_numeric(check, row, what, numeric, gradients);
      }
      for (const DType dtype : check.dtypes) {
        if (dtype == check.numeric_dtype) continue;
        for (int layout = 0; layout < (check.strided ? 3 : 1); ++layout)
          check_low_precision(check, row, device, dtype, static_cast<Layout>(layout));
      }
    }
  }
}

}  // namespace castor::test
