// The ladder of changes; see plan_fit.h.
#include "strategy/cli/plan_fit.h"

#include <utility>
#include <vector>

#include "strategy/runner/runner.h"
#include "strategy/runner/strategy_arguments.h"

namespace castor::strategy {
namespace {

/// A plugin to try, by its options.
struct Rung {
  std::string type;
  std::vector<std::pair<std::string, ConfigNode>> options;
};

std::vector<Rung> rungs() {
  const ConfigNode automatic("auto"), accumulates(true);
  return {{"lowlevel-zero", {{"stage", 1}}},
          {"lowlevel-zero", {{"stage", 2}}},
          {"gemini", {{"placement_policy", automatic}, {"enable_gradient_accumulation", accumulates}}},
          {"gemini",
           {{"placement_policy", automatic},
            {"enable_gradient_accumulation", accumulates},
            {"nvme_offload_dir", "scratch"}}}};
}

// The precision that a config trains in, as a plugin's option.
ConfigNode precision_of_run(const ConfigNode& strategy) {
  if (const ConfigNode* mixed = strategy.find("mixed_precision"); mixed != nullptr && mixed->is_string()) return *mixed;
  const ConfigNode* plugin = strategy.find("plugin");
  if (plugin != nullptr && plugin->is_null()) return "fp32";
  const ConfigNode* precision = plugin != nullptr && plugin->is_map() ? plugin->find("precision") : nullptr;
  return precision != nullptr ? *precision : ConfigNode("fp16");
}

std::string value_text(const ConfigNode& value) {
  return value.is_string() ? value.as_string()
         : value.is_bool() ? (value.as_bool() ? "true" : "false")
                           : std::to_string(value.as_int());
}

}  // namespace

std::optional<FittingChange> cheapest_change(const ConfigNode& config, const std::string& what,
                                             const Registry& registry, std::int64_t world_size,
                                             const MemoryLimits& limits) {
  const ConfigNode* strategy = config.find("strategy");
  const ConfigNode* loader = config.find("train_dataloader");
  const ConfigNode* batch = loader == nullptr ? nullptr : loader->find("batch_size");
  if (strategy == nullptr || batch == nullptr || !batch->is_int()) return {};
  const std::int64_t micro_batch = batch->as_int();
  const auto attempt = [&](const ConfigNode& changed, std::int64_t ranks) -> std::optional<Plan> {
    try {
      Plan plan = Runner(changed, what, registry).plan(ranks, limits);
      if (plan.fits()) return plan;
    } catch (const ConfigError&) {  // not with this config
    } catch (const OutOfMemory&) {
    }
    return {};
  };
  for (std::int64_t split = 1; split <= 8 && micro_batch % split == 0; split *= 2) {
    for (const Rung& rung : rungs()) {
      ConfigNode changed = config, plugin = ConfigNode::map();
      plugin.set("type", rung.type);
      plugin.set("precision", precision_of_run(*strategy));
      std::string text =
          cat("strategy.plugin={type: ", rung.type, ", precision: ", value_text(precision_of_run(*strategy)));
      for (const auto& [name, value] : rung.options) {
        plugin.set(name, value);
        text += cat(", ", name, ": ", value_text(value));
      }
      text += "}";
      changed.find("strategy")->set("plugin", std::move(plugin));
      if (const std::string moved = clip_to_plugin(changed); !moved.empty()) text += " " + moved;
      if (split > 1) {
        ConfigNode* wrapper = changed.find("optim_wrapper");
        const ConfigNode* counts = wrapper == nullptr ? nullptr : wrapper->find("accumulative_counts");
        const std::int64_t steps = split * (counts != nullptr && counts->is_int() ? counts->as_int() : 1);
        if (wrapper != nullptr) wrapper->set("accumulative_counts", steps);
        changed.find("train_dataloader")->set("batch_size", micro_batch / split);
        text += cat(" train_dataloader.batch_size=", micro_batch / split, " optim_wrapper.accumulative_counts=", steps);
      }
      if (auto plan = attempt(changed, world_size)) return FittingChange{text, *std::move(plan)};
    }
  }
  for (std::int64_t ranks = 2 * world_size; ranks <= 64 * world_size; ranks *= 2) {
    if (auto plan = attempt(config, ranks)) return FittingChange{cat("--world-size ", ranks), *std::move(plan)};
  }
  return {};
}

}  // namespace castor::strategy
