// Reading values back and remembering the first that is not finite. Delicate: every rank reads everything, found or
// not, and parameters are not read, only named: what is sharded is gathered by all ranks together.
#include "autograd/finite_watch.h"

#include <algorithm>
#include <cmath>

#include "core/ops/cast.h"

namespace castor::autograd {
namespace {

bool is_finite(const Tensor& x) {
  if (!is_floating(x.dtype()) || x.device().is_meta()) return true;
  const std::vector<float> values = castor::cast(x, DType::f32).to_vector<float>();
  return std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); });
}

}  // namespace

std::string FiniteWatch::text() const {
  if (op_.empty()) return {};
  return parameter_.empty() ? op_ : cat("'", parameter_, "' (first seen in ", op_, ")");
}

void FiniteWatch::on_result(const char* op, const std::vector<Variable>& inputs, const Tensor& result) {
  if (is_finite(result) || !op_.empty()) return;
  op_ = cat("the forward of ", op);
  for (const Variable& input : inputs) {
    if (parameter_.empty() && input.defined()) parameter_ = input.name();
  }
}

void FiniteWatch::on_gradient(const char* op, const Variable& input, const Tensor& gradient) {
  if (is_finite(gradient)) return;
  const bool is_parameter = input.is_leaf() && !input.name().empty();
  if (op_.empty()) op_ = cat("the backward of ", op);
  if (is_parameter && parameter_.empty()) parameter_ = input.name();
}

}  // namespace castor::autograd
