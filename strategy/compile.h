// `compile`: torch.compile in the peers; here it would be a step that is captured once and replayed. No step is
// captured in this version, so asking for it is refused with the reason instead of being taken and left out.
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
  v.field("disable", c.disable, "true: steps run as they are");
  v.retired("target", ConfigNode("forward"), "a step would be captured whole: forward, backward and update");
  v.retired("backend", ConfigNode("inductor"), "kernels are compiled with the program");
  v.retired("mode", ConfigNode(), "kernels are compiled with the program");
  v.retired("fullgraph", ConfigNode(false), "there is no Python between kernels that a graph could leave out");
  v.retired("dynamic", ConfigNode(), "kernels take all shapes");
  v.retired("options", ConfigNode(), "kernels are compiled with the program");
}

/// The key's value.
using CompileOption = std::variant<bool, CompileConfig>;

inline bool asks_for_capture(const CompileOption& option) {
  const bool* plain = std::get_if<bool>(&option);
  return plain != nullptr ? *plain : !std::get<CompileConfig>(option).disable;
}

/// Why asking for it is an error.
inline constexpr const char* kNoCapture =
    "no step is captured in this version: a replayed step needs every tensor at the address it had, which sharded "
    "weights that come and go have not, and on CPUs kernels start without a cost that replaying would save; kernels "
    "are "
    "fused ahead of time. Leave compile out, or give false or {disable: true}";

}  // namespace castor::strategy
