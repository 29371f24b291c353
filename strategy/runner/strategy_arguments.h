// The arguments that mmengine's strategies take of the run itself (work_dir, experiment_name, env_kwargs, log_kwargs):
// in a `strategy` block they mean what the runner's keys at the top level mean, so they are moved there before anything
// is read.
#pragma once

#include <string>
#include <string_view>

#include "strategy/config/diagnostics.h"
#include "strategy/config/node.h"
#include "strategy/registry.h"
#include "strategy/runner/runner_config.h"

namespace castor::strategy {

/// The config with those arguments at the top level: env_kwargs' launcher and randomness under their own keys, the rest
/// of it in env_cfg; log_kwargs' log_level under its own, the rest in log_kwargs. What is given at both places is a
/// mistake.
ConfigNode lift_strategy_arguments(ConfigNode config, Diagnostics& diagnostics);

/// After another plugin was put into a config: moves optim_wrapper.clip_grad's max_norm to the plugin's, which is where
/// gemini and lowlevel-zero take it. Returns the change as overrides, or "" where there is no such limit.
std::string clip_to_plugin(ConfigNode& config);

/// Reads and checks a whole training config. Throws one ConfigError with all mistakes.
///   what  the config's name in the message
RunnerConfig parse_runner_config(const ConfigNode& config, std::string_view what, const Registry& registry);

}  // namespace castor::strategy
