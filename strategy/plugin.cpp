// What a ShardRequest says of its parameters.
#include "strategy/plugin.h"

namespace castor::strategy {

std::vector<autograd::Variable> ShardRequest::trained() const {
  std::vector<autograd::Variable> found;
  for (const autograd::Variable& parameter : parameters) {
    if (parameter.requires_grad()) found.push_back(parameter);
  }
  return found;
}

}  // namespace castor::strategy
