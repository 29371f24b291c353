// The settings that are tried; see plan_fit.h.
#include "strategy/cli/plan_fit.h"

#include <utility>
#include <vector>

#include "strategy/runner/runner.h"
#include "strategy/runner/strategy_arguments.h"

namespace castor::strategy {
namespace {

/// A plugin to try, by its options; no type: the config's own.
struct Rung {
  std::string type;
  std::vector<std::pair<std::string, ConfigNode>> options;
};

// Each holds less on the device than those before it, and moves more.
std::vector<Rung> rungs() {
  const ConfigNode automatic("auto"), accumulates(true);
  return {{"", {}},
          {"lowlevel-zero", {{"stage", 1}}},
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

void add_word(std::string& text, const std::string& word) { text += text.empty() ? word : " " + word; }

std::string set_plugin(ConfigNode& strategy, const Rung& rung) {
  const ConfigNode precision = precision_of_run(strategy);
  ConfigNode plugin = ConfigNode::map();
  plugin.set("type", rung.type);
  plugin.set("precision", precision);
  std::string text = cat("strategy.plugin={type: ", rung.type, ", precision: ", value_text(precision));
  for (const auto& [name, value] : rung.options) {
    plugin.set(name, value);
    text += cat(", ", name, ": ", value_text(value));
  }
  strategy.set("plugin", std::move(plugin));
  return text + "}";
}

// The same global batch in smaller micro-batches. False if it does not divide.
bool split_batches(ConfigNode& config, std::int64_t split, std::string& text) {
  ConfigNode* loader = config.find("train_dataloader");
  ConfigNode* wrapper = config.find("optim_wrapper");
  const std::int64_t batch = loader->find("batch_size")->as_int();
  if (batch % split != 0 || wrapper == nullptr) return false;
  const ConfigNode* counts = wrapper->find("accumulative_counts");
  const std::int64_t steps = split * (counts != nullptr && counts->is_int() ? counts->as_int() : 1);
  loader->set("batch_size", batch / split);
  wrapper->set("accumulative_counts", steps);
  add_word(text, cat("train_dataloader.batch_size=", batch / split, " optim_wrapper.accumulative_counts=", steps));
  return true;
}

class Search {
 public:
  Search(const FittingTask& task, const Registry& registry, const Machine& machine)
      : task_(task), registry_(registry), machine_(machine) {}

  std::optional<FittingChange> run() {
    const ConfigNode* strategy = task_.config.find("strategy");
    const ConfigNode* loader = task_.config.find("train_dataloader");
    const ConfigNode* batch = loader == nullptr ? nullptr : loader->find("batch_size");
    if (strategy == nullptr || batch == nullptr || !batch->is_int()) return {};
    const ConfigNode* model = task_.config.find("model");
    const ConfigNode* recompute = model == nullptr ? nullptr : model->find("recompute");
    may_recompute_ = model != nullptr && (recompute == nullptr || (recompute->is_bool() && !recompute->as_bool()));
    for (const Rung& rung : rungs()) {
      // A rung that fits as it is leaves nothing to those that only move more.
      if (try_rung(rung)) break;
    }
    activations_exceed_ = false;
    // More ranks hold less each, but for the activations of their own micro-batches.
    for (std::int64_t more = 2; more <= 64 && !best_ && !activations_exceed_; more *= 2) {
      const std::int64_t ranks = more * task_.world_size;
      attempt(task_.config, cat("--world-size ", ranks), ranks);
    }
    return std::move(best_);
  }

 private:
  enum class Result { kFits, kActivations, kTooLarge };  // kActivations: without activations it would fit

  // True if the rungs after it can only be dearer: one that keeps everything in its place fits with whole micro-batches
  // and without recomputation, or one that places by room fits at all.
  bool try_rung(const Rung& rung) {
    const bool places_by_room = rung.type == "gemini";
    bool fits = false;
    for (const bool recomputes : {false, true}) {
      if (recomputes && !may_recompute_) continue;
      for (std::int64_t split = 1; split <= 8; split *= 2) {
        ConfigNode changed = task_.config;
        std::string text;
        if (!rung.type.empty()) {
          text = set_plugin(*changed.find("strategy"), rung);
          if (const std::string moved = clip_to_plugin(changed); !moved.empty()) add_word(text, moved);
        }
        if (split > 1 && !split_batches(changed, split, text)) break;
        if (recomputes) {
          changed.find("model")->set("recompute", true);
          add_word(text, "model.recompute=true");
        }
        if (text.empty()) continue;  // the config as it is, which does not fit
        const Result result = attempt(changed, text, task_.world_size);
        if (result == Result::kTooLarge) return false;
        if (result != Result::kFits) continue;
        fits = true;
        if (places_by_room) continue;  // smaller steps leave room, so that less moves
        if (split == 1 && !recomputes) return true;
        break;  // still smaller micro-batches only cost more
      }
    }
    return places_by_room && fits;
  }

  Result attempt(const ConfigNode& changed, const std::string& text, std::int64_t ranks) {
    try {
      Plan plan = Runner(changed, task_.what, registry_).plan(ranks, task_.limits, task_.target);
      if (!plan.fits()) {
        const auto activations = plan.memory.at_peak[static_cast<std::size_t>(Category::activations)];
        activations_exceed_ =
            task_.limits.device_bytes && activations > static_cast<std::size_t>(*task_.limits.device_bytes);
        const bool is_too_large =
            !task_.limits.device_bytes ||
            plan.memory.peak_total - activations > static_cast<std::size_t>(*task_.limits.device_bytes);
        return is_too_large ? Result::kTooLarge : Result::kActivations;
      }
      const StepEstimate estimate = estimate_step(plan, machine_);
      if (!best_ || estimate.total() < best_->estimate.total()) best_ = {text, std::move(plan), estimate};
      return Result::kFits;
    } catch (const ConfigError&) {  // not with this config
    } catch (const OutOfMemory&) {
    }
    return Result::kActivations;
  }

  const FittingTask& task_;
  const Registry& registry_;
  const Machine& machine_;
  bool may_recompute_ = false;
  bool activations_exceed_ = false;  // the device's limit, by themselves, in the last attempt
  std::optional<FittingChange> best_;
};

}  // namespace

std::optional<FittingChange> cheapest_change(const FittingTask& task, const Registry& registry,
                                             const Machine& machine) {
  return Search(task, registry, machine).run();
}

}  // namespace castor::strategy
