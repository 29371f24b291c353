// `compile`: torch.compile in the peers. Kernels here are compiled with the program; what is left to gain is the time
// in which the host starts them one by one, so the passes of a training step are recorded and run as one
// (recorded_step.h), and so is its update (autograd/optim/stepper_recorded.cpp).
#pragma once

#include <variant>

#include "strategy/config/field.h"

namespace castor::strategy {

/// `compile` as a map.
struct CompileConfig {
  bool disable = false;
};

template <class V>
void describe(V& v, CompileConfig& c) {
  v.field("disable", c.disable, "true: passes run op by op");
  v.retired("target", ConfigNode("forward"), "forward and backward are recorded together");
  v.retired("backend", ConfigNode("inductor"), "kernels are compiled with the program");
  v.retired("mode", ConfigNode(), "kernels are compiled with the program");
  v.retired("fullgraph", ConfigNode(false), "there is no Python between kernels that a graph could leave out");
  v.retired("dynamic", ConfigNode(), "kernels take all shapes; each shape of batch has a recording of its own");
  v.retired("options", ConfigNode(), "kernels are compiled with the program");
}

/// The key's value.
using CompileOption = std::variant<bool, CompileConfig>;

inline bool asks_for_recording(const CompileOption& option) {
  const bool* plain = std::get_if<bool>(&option);
  return plain != nullptr ? *plain : !std::get<CompileConfig>(option).disable;
}

}  // namespace castor::strategy
