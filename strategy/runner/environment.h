// What a run runs on, for the head of its log: mmengine's collect_env. Facts that help to tell why two runs differ.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "core/device/device.h"
#include "dist/launch.h"

namespace castor::strategy {

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
