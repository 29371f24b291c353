// The value tree as JSON: apart from node.cpp because it alone needs nlohmann.
#include <nlohmann/json.hpp>

#include "core/base/error.h"
#include "strategy/config/node.h"

namespace castor::strategy {

nlohmann::ordered_json to_json(const ConfigNode& node) {
  switch (node.kind()) {
    case ConfigNode::Kind::kNull:
      return nullptr;
    case ConfigNode::Kind::kBool:
      return node.as_bool();
    case ConfigNode::Kind::kInt:
      return node.as_int();
    case ConfigNode::Kind::kFloat:
      return node.as_float();
    case ConfigNode::Kind::kString:
      return node.as_string();
    case ConfigNode::Kind::kList: {
      auto out = nlohmann::ordered_json::array();
      for (const ConfigNode& element : node.as_list()) out.push_back(to_json(element));
      return out;
    }
    case ConfigNode::Kind::kMap: {
      // emplace_back is the vector's own: keys are known to differ, so none is searched for.
      nlohmann::ordered_json::object_t out;
      for (const ConfigNode::Member& member : node.as_map()) out.emplace_back(member.key, to_json(member.value));
      return out;
    }
  }
  throw InternalError("config: unknown kind");
}

}  // namespace castor::strategy
