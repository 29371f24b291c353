// The hyper-parameters of one group of parameters, as plain named numbers.
//
// They are a map and not struct fields because others than the optimizer read and write them by name: schedulers move
// any of them ("lr", "beta1", "weight_decay"), automatic scaling multiplies them, checkpoints store them.
// Delicate: schedulers also keep here, under "initial_<name>" ("max_<name>", "min_<name>" for the one-cycle shape),
// the value a schedule started from; an optimizer ignores names it does not know and saves them with the others.
#pragma once

#include <functional>
#include <map>
#include <string>

namespace castor::autograd {

/// One group of parameters that share hyper-parameters.
struct ParamGroup {
  /// What messages and logs call the group; may be empty.
  std::string name;
  /// Hyper-parameter by name: "lr", "momentum", "beta1", "beta2", "weight_decay", "eps", ...
  std::map<std::string, double, std::less<>> values;
};

}  // namespace castor::autograd
