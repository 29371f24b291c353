// FiniteWatch: finds the first op of a forward and backward whose result is infinite or NaN, and the parameter that it
// concerns. For the step before a run is given up: every value is read back, which no other step pays for.
#pragma once

#include <string>

#include "autograd/graph.h"

namespace castor::autograd {

class FiniteWatch final : public ResultObserver {
 public:
  /// What was found: "'head.weight' in the backward of linear"; empty if all was finite.
  std::string text() const;
  bool has_found() const { return !op_.empty(); }

  void on_result(const char* op, const std::vector<Variable>& inputs, const Tensor& result) override;
  void on_gradient(const char* op, const Variable& input, const Tensor& gradient) override;

 private:
  std::string op_;         // "the forward of linear"
  std::string parameter_;  // that the op used, or else the first whose gradient is not finite
};

}  // namespace castor::autograd
