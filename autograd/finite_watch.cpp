// Reading values back and remembering the first that is not finite. Delicate: parameters are not read, only named: one
// that is sharded would have to be gathered, by all ranks together.
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
  if (!op_.empty() || is_finite(result)) return;
  op_ = cat("the forward of ", op);
  for (const Variable& input : inputs) {
    if (parameter_.empty() && input.defined()) parameter_ = input.name();
  }
}

void FiniteWatch::on_gradient(const char* op, const Variable& input, const Tensor& gradient) {
  const bool is_parameter = input.is_leaf() && !input.name().empty();
  if ((!op_.empty() && (!parameter_.empty() || !is_parameter)) || is_finite(gradient)) return;
  if (op_.empty()) op_ = cat("the backward of ", op);
  if (is_parameter && parameter_.empty()) parameter_ = input.name();
}

}  // namespace castor::autograd
