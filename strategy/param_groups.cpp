// The rules, in the order in which mmengine asks them; see param_groups.h.
#include "strategy/param_groups.h"

#include <algorithm>
#include <set>

#include "autograd/nn/layers.h"
#include "autograd/nn/vision.h"
#include "core/base/log.h"

namespace castor::strategy {
namespace {

constexpr const char* kPath = "optim_wrapper.paramwise_cfg";

bool is_norm(const autograd::Module* module) {
  return dynamic_cast<const autograd::Norm*>(module) != nullptr ||
         dynamic_cast<const autograd::BatchNorm2d*>(module) != nullptr ||
         dynamic_cast<const autograd::GroupNorm*>(module) != nullptr;
}

// As many groups as input channels.
bool is_depthwise(const autograd::Module* module) {
  const auto* conv = dynamic_cast<const autograd::Conv2d*>(module);
  return conv != nullptr && conv->weight().shape()[1] == 1;
}

class Rules {
 public:
  Rules(autograd::Module& model, const ParamwiseConfig& config) : config_(config) {
    for (const auto& [name, module] : model.named_modules()) modules_[name] = module;
    for (const auto& [key, multipliers] : config.custom_keys) keys_.push_back(key);
    std::stable_sort(keys_.begin(), keys_.end(),
                     [](const std::string& a, const std::string& b) { return a.size() > b.size(); });
  }

  /// Of the parameter under this dotted name.
  Multipliers of(const std::string& name, const autograd::Variable& parameter) {
    const std::size_t dot = name.rfind('.');
    const std::string owner = dot == std::string::npos ? "" : name.substr(0, dot);
    const bool is_bias = (dot == std::string::npos ? name : name.substr(dot + 1)) == "bias";
    if (const Multipliers* custom = custom_for(dot == std::string::npos ? "." + name : name)) return *custom;
    const autograd::Module* module = modules_.at(owner);
    Multipliers result;
    if (is_bias && !is_norm(module)) result.lr_mult = config_.bias_lr_mult.value_or(1);
    if (is_norm(module) && config_.norm_decay_mult) {
      result.decay_mult = *config_.norm_decay_mult;
    } else if (is_bias && config_.bias_decay_mult) {
      result.decay_mult = *config_.bias_decay_mult;
    } else if (is_depthwise(module) && config_.dwconv_decay_mult) {
      result.decay_mult = *config_.dwconv_decay_mult;
    } else if (parameter.shape().ndim() == 1 && config_.flat_decay_mult) {
      result.decay_mult = *config_.flat_decay_mult;
    }
    return result;
  }

  void warn_about_unmatched() const {
    std::string unmatched;
    for (const std::string& key : keys_) {
      if (!matched_.contains(key)) unmatched += cat(unmatched.empty() ? "" : ", ", "'", key, "'");
    }
    if (!unmatched.empty()) logger().warning(kPath, ".custom_keys: no parameter's name contains ", unmatched);
  }

 private:
  const Multipliers* custom_for(const std::string& name) {
    const Multipliers* found = nullptr;
    for (const std::string& key : keys_) {
      if (name.find(key) == std::string::npos) continue;
      matched_.insert(key);
      if (found == nullptr) found = &config_.custom_keys.at(key);
    }
    return found;
  }

  const ParamwiseConfig& config_;
  std::map<std::string, const autograd::Module*> modules_;
  std::vector<std::string> keys_;  // longest first, then by the alphabet
  std::set<std::string> matched_;
};

void multiply(autograd::ParamGroup& group, const char* name, double factor) {
  if (factor == 1) return;
  const auto found = group.values.find(name);
  if (found == group.values.end()) {
    throw ConfigError(cat(kPath, ": asks for multiples of ", name, ", which this optimizer does not have"), kPath);
  }
  found->second *= factor;
}

autograd::ParamGroup make_group(const autograd::ParamGroup& base, const Multipliers& multipliers) {
  autograd::ParamGroup group = base;
  group.name = cat("lr x ", multipliers.lr_mult, ", weight_decay x ", multipliers.decay_mult);
  multiply(group, "lr", multipliers.lr_mult);
  multiply(group, "weight_decay", multipliers.decay_mult);
  return group;
}

}  // namespace

ParamGrouping group_parameters(autograd::Module& model, const ParamwiseConfig& config,
                               const autograd::ParamGroup& base) {
  Rules rules(model, config);
  ParamGrouping grouping{{base}, {}};
  std::map<Multipliers, int> known{{Multipliers{}, 0}};
  std::map<std::string, std::pair<autograd::Variable, Multipliers>> by_name;
  for (const auto& [name, parameter] : model.named_parameters()) {
    const Multipliers multipliers = rules.of(name, parameter);
    const auto [group, is_new] = known.try_emplace(multipliers, static_cast<int>(grouping.groups.size()));
    if (is_new) grouping.groups.push_back(make_group(base, multipliers));
    grouping.group_of[parameter.identity()] = group->second;
    by_name.emplace(name, std::pair(parameter, multipliers));
  }
  for (const auto& [other, first] : model.aliases()) {
    const auto& [parameter, multipliers] = by_name.at(first);
    if (rules.of(other, parameter) == multipliers) continue;
    if (!config.bypass_duplicate) {
      throw ConfigError(cat(kPath, ": '", other, "' is tied to '", first,
                            "' and they ask for different multipliers; let one rule cover both names, or set "
                            "bypass_duplicate: true to use the first name's"),
                        cat(kPath, ".bypass_duplicate"));
    }
    logger().warning(kPath, ": '", other, "' is tied to '", first, "' and has its multipliers");
  }
  rules.warn_about_unmatched();
  return grouping;
}

}  // namespace castor::strategy
