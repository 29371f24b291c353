// Groups of hyper-parameters and the errors of acting on them, for the scheduler tests.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "core/base/error.h"
#include "strategy/scheduler.h"

namespace castor::test::schedulers {

using namespace castor::strategy;

/// What an optimizer's groups() gives.
using Groups = std::vector<autograd::ParamGroup>;

/// One group of an SGD optimizer.
inline Groups sgd_groups() { return {{"all", {{"lr", 0.1}, {"momentum", 0.9}, {"weight_decay", 0.01}}}}; }

/// Two groups of an Adam optimizer.
inline Groups adam_groups() {
  return {{"decay", {{"lr", 1e-3}, {"beta1", 0.9}, {"beta2", 0.95}, {"weight_decay", 0.1}}},
          {"no_decay", {{"lr", 2e-3}, {"beta1", 0.8}, {"beta2", 0.99}, {"weight_decay", 0.0}}}};
}

/// A group's learning rate now.
inline double lr(const Groups& groups, std::size_t group = 0) { return groups[group].values.at("lr"); }

/// The ConfigError that `act` throws.
inline ConfigError config_error(const std::function<void()>& act) {
  try {
    act();
  } catch (const ConfigError& error) {
    return error;
  }
  FAIL("no ConfigError was thrown");
  return {"", ""};
}

/// The text of the FormatError that `act` throws.
inline std::string format_error(const std::function<void()>& act) {
  try {
    act();
  } catch (const FormatError& error) {
    return error.what();
  }
  FAIL("no FormatError was thrown");
  return "";
}

/// The ConfigError of making a scheduler with these options on one SGD group, which must stay as it was.
template <class Scheduler>
ConfigError refusal(const typename Scheduler::Config& config) {
  Groups groups = sgd_groups();
  const Groups before = groups;
  const ConfigError error = config_error([&] { Scheduler(SchedulerContext{groups}, config); });
  CHECK(groups[0].values == before[0].values);
  return error;
}

/// True if `text` contains `part`.
inline bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace castor::test::schedulers
