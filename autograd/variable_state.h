// What a Variable points to. Internal to the graph files: everyone else goes through Variable.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "autograd/variable.h"

namespace castor::autograd {

struct VariableState {
  Tensor data;
  Tensor grad;
  bool requires_grad = false;
  std::shared_ptr<Node> node;  ///< the operation that computed it; null for leaves
  std::size_t result_index = 0;
  std::string name;
  std::vector<std::function<void(const Variable&)>> gradient_hooks;
};

}  // namespace castor::autograd
