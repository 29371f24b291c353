// Moving the run's arguments out of the strategy block, and the checks that need more than one part of a config.
#include "strategy/runner/strategy_arguments.h"

#include "strategy/colossalai_strategy.h"
#include "strategy/config.h"

namespace castor::strategy {
namespace {

/// Moves `member` of the strategy's argument `from` to where the dotted name `to` says.
void move_to(ConfigNode& config, const std::string& from, const ConfigNode::Member& member, const std::string& to,
             Diagnostics& diagnostics) {
  ConfigNode* parent = &config;
  std::string key = to;
  if (const std::size_t dot = to.find('.'); dot != std::string::npos) {
    const std::string outer = to.substr(0, dot);
    key = to.substr(dot + 1);
    if (config.find(outer) == nullptr || config.find(outer)->is_null()) config.set(outer, ConfigNode::map());
    parent = config.find(outer);
  }
  if (!parent->is_map()) return;  // its own mistake is found when it is read
  if (const ConfigNode* there = parent->find(key); there != nullptr && !there->same_value(member.value)) {
    diagnostics.add(from, member.mark, cat("says what ", to, " says, too, and otherwise; give one of them"));
    return;
  }
  parent->set(key, member.value);
}

void refuse_misplaced_clip(const RunnerConfig& config, const Registry& registry, Diagnostics& diagnostics) {
  if (!config.optim_wrapper || !config.optim_wrapper->clip_grad) return;
  if (config.optim_wrapper->clip_grad->type != "norm" || config.strategy.type != "ColossalAIStrategy") return;
  ConfigNode block = config.strategy.node;
  block.erase("type");
  const auto strategy = parse_config<ColossalAIStrategy::Config>(block, "strategy", &registry);
  if (!strategy.plugin.present()) return;
  const std::unique_ptr<Plugin> plugin = registry.plugins.build(strategy.plugin);
  if (!plugin->settings().has_max_norm) return;
  diagnostics.add("optim_wrapper.clip_grad", {},
                  cat(plugin->type_name(), " limits the norm itself: set strategy.plugin.max_norm instead"));
}

}  // namespace

ConfigNode lift_strategy_arguments(ConfigNode config, Diagnostics& diagnostics) {
  ConfigNode* found = config.find("strategy");
  if (found == nullptr || !found->is_map()) return config;
  ConfigNode block = *found;
  for (const char* name : {"work_dir", "experiment_name", "env_kwargs", "log_kwargs"}) {
    const ConfigNode::Member* argument = block.find_member(name);
    if (argument == nullptr) continue;
    const std::string path = cat("strategy.", name);
    const std::string key = name;
    if (argument->value.is_null()) {
      block.erase(key);
      continue;
    }
    if (key == "work_dir" || key == "experiment_name") {
      move_to(config, path, *argument, key, diagnostics);
    } else if (!argument->value.is_map()) {
      diagnostics.add(path, argument->mark, cat("expected a map, got ", argument->value.describe()));
    } else {
      const bool is_env = key == "env_kwargs";
      for (const ConfigNode::Member& member : argument->value.as_map()) {
        const bool has_own_key =
            is_env ? member.key == "launcher" || member.key == "randomness" : member.key == "log_level";
        const std::string to = has_own_key ? member.key : cat(is_env ? "env_cfg." : "log_kwargs.", member.key);
        move_to(config, join_config_path(path, member.key), member, to, diagnostics);
      }
    }
    block.erase(key);
  }
  config.set("strategy", std::move(block));
  return config;
}

std::string clip_to_plugin(ConfigNode& config) {
  ConfigNode* wrapper = config.find("optim_wrapper");
  ConfigNode* strategy = config.find("strategy");
  ConfigNode* plugin = strategy == nullptr ? nullptr : strategy->find("plugin");
  const ConfigNode* clip = wrapper == nullptr ? nullptr : wrapper->find("clip_grad");
  const ConfigNode* norm = clip == nullptr ? nullptr : clip->find("max_norm");
  if (norm == nullptr || norm->is_null() || plugin == nullptr || !plugin->is_map()) return "";
  if (const ConfigNode* type = clip->find("type"); type != nullptr && !type->same_value("norm")) return "";
  const std::string value = norm->is_int() ? cat(norm->as_int()) : norm->is_float() ? cat(norm->as_float()) : "";
  plugin->set("max_norm", *norm);
  wrapper->set("clip_grad", ConfigNode());
  return cat("strategy.plugin.max_norm=", value, " optim_wrapper.clip_grad=null");
}

RunnerConfig parse_runner_config(const ConfigNode& config, std::string_view what, const Registry& registry) {
  RunnerConfig out;
  Diagnostics diagnostics;
  parse_config(lift_strategy_arguments(config, diagnostics), out, diagnostics, &registry);
  if (diagnostics.empty()) refuse_misplaced_clip(out, registry, diagnostics);
  if (const auto* path = std::get_if<std::string>(&out.resume)) {
    if (out.load_from && *out.load_from != *path) {
      diagnostics.add("resume", {}, cat("names ", *path, ", and load_from another source; give one of them"));
    }
    out.load_from = *path;
    out.resume = true;
  }
  diagnostics.throw_if_any(what);
  return out;
}

}  // namespace castor::strategy
