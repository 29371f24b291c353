// What a rank sets up in its process, and what it runs on, for the head of its log: mmengine's setup_env and
// collect_env. The facts are those that help to tell why two runs differ.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/base/log.h"
#include "core/device/device.h"
#include "dist/launch.h"
#include "strategy/runner/runner_config.h"

namespace castor::strategy {

/// The compute threads that a rank sets: as asked; one in a job of several ranks whose launcher says nothing, which
/// would share the cores; none: as OpenMP does by itself.
std::optional<int> threads_to_set(std::optional<std::int64_t> asked, int world_size,
                                  const dist::Environment& environment);

/// Where a rank logs, and how much. Rank 0 writes the file; with `distributed` every other one a file beside it;
/// without they only warn, on the console.
///   stamp  the run's time, the same on all ranks
LogOptions log_options(const LogConfig& config, LogLevel level, const std::string& work_dir, const std::string& stamp,
                       int rank);

/// Facts by name, in order.
struct EnvironmentFacts {
  using Facts = std::vector<std::pair<std::string, std::string>>;
  Facts system;   ///< machine, compiler and build
  Facts runtime;  ///< this process among the ranks
};

EnvironmentFacts collect_env(const dist::RankInfo& info, Device device);

/// For the log, a line a fact.
std::string environment_text(const EnvironmentFacts& facts);

}  // namespace castor::strategy
