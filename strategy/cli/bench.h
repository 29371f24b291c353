// `castor bench`: whole training steps of GPT-2 and Qwen2 shaped models on random tokens, timed.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <optional>
#include <string>
#include <vector>

#include "strategy/cli/command_line.h"
#include "strategy/config/typed_config.h"

namespace castor::strategy {

/// What `castor bench` was given.
struct BenchArguments {
  std::string model = "124M";               ///< a size of the table in bench.cpp
  std::int64_t batch = 8;                   ///< sequences of a micro-batch
  std::int64_t context = 1024;              ///< tokens of a sequence
  std::optional<std::string> device;        ///< none: a GPU where there is one
  std::optional<std::string> plugin;        ///< a registered plugin; none: one process without
  std::vector<std::string> plugin_options;  ///< KEY=VALUE of its config
  std::string gpu_transport = "auto";       ///< as env_cfg.dist_cfg.gpu_transport
  std::string precision = "bf16";
  std::int64_t steps = 20;            ///< timed
  std::int64_t warmup = 3;            ///< not timed
  bool recompute = false;             ///< keep only each block's input
  bool recompute_activation = false;  ///< keep the activation's input, not its result
  bool compile = false;               ///< record the passes of a step, and its update
  bool ops = false;                   ///< afterwards, one more step with each op timed by itself
  std::optional<std::string> trace;   ///< afterwards, one more step whose timeline is written to this file
  bool json = false;
};

/// The model that is timed, as a config would name it. Throws ConfigError for a size that is none.
TypedConfig bench_model(const BenchArguments& arguments);

/// Trains and prints to `out`: tokens/s (median of the steps), TFLOP/s, memory by category against the plan.
/// Rank R > 0 writes its timeline to the file's name with `.R` behind it. The model
/// type "Gpt" must be registered. Returns an exit code. Throws ConfigError for a size, device or precision that is
/// none, OutOfMemory before the first step where the plan says that it does not fit.
int run_bench(const BenchArguments& arguments, Registry& registry, std::ostream& out);

/// The subcommand.
Subcommand bench_command();

}  // namespace castor::strategy
