// One run of the tiny config (tiny_run.h) in a work folder of its own, watched at every point and read afterwards: its
// log, scalars and checkpoints. What the tests of the runner share.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/log.h"
#include "strategy/checkpoint.h"
#include "strategy/runner/runner.h"
#include "tests/support/muted_output.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_run.h"

namespace castor::test {

using Overrides = std::vector<std::string>;

/// Calls back at every point of a run.
class WatchingHook final : public strategy::Hook {
 public:
  using Watch = std::function<void(const char*, strategy::RunControl&)>;
  explicit WatchingHook(const Watch& watch) : watch_(watch) {}
  void before_run(strategy::RunControl& run) override { watch_("before_run", run); }
  void after_train_iter(strategy::RunControl& run) override { watch_("iter", run); }
  void after_train_epoch(strategy::RunControl& run) override { watch_("epoch", run); }
  void after_val(strategy::RunControl& run) override { watch_("val", run); }
  void after_test(strategy::RunControl& run) override { watch_("test", run); }
  void after_run(strategy::RunControl& run) override { watch_("after_run", run); }

 private:
  const Watch& watch_;
};

/// A runner sets the process's logger; this takes it back.
struct ProcessLogReset {
  ~ProcessLogReset() { set_process_logger(nullptr); }
};

/// One work folder, and what a run leaves there.
struct Run {
  /// Trains a tiny config. `watch`, if given, sees every hook call.
  explicit Run(const Overrides& overrides = {}, WatchingHook::Watch watch = {}) : watching(std::move(watch)) {
    add_tiny_types(registry);
    registry.hooks.add<strategy::NoOptions>("WatchingHook", "calls a test back",
                                            [this](const strategy::NoOptions&) -> std::unique_ptr<strategy::Hook> {
                                              return std::make_unique<WatchingHook>(watching);
                                            });
    config = tiny_config(folder.path().string(), overrides);
    if (watching)
      config.set("custom_hooks",
                 strategy::ConfigNode(strategy::ConfigNode::List{strategy::TypedConfig("WatchingHook").node}));
    was_finished = train(config);
  }
  /// Trains another config with this one's types.
  bool train(const strategy::ConfigNode& other) const {
    const MutedOutput muted;
    const ProcessLogReset reset;
    return strategy::Runner(other, "tiny.yaml", registry).train();
  }
  std::map<std::string, double> measure(const strategy::ConfigNode& other) const {
    const MutedOutput muted;
    const ProcessLogReset reset;
    return strategy::Runner(other, "tiny.yaml", registry).test();
  }

  std::string path(const std::string& name) const { return (folder.path() / name).string(); }
  /// The folder of the log: the only one whose name begins with a digit.
  std::string log_dir() const {
    std::vector<std::string> found;
    for (const DirectoryEntry& entry : list_directory(folder.path().string())) {
      if (entry.kind == FileKind::directory && entry.name[0] == '2') found.push_back(entry.name);
    }
    REQUIRE(found.size() == 1);
    return path(found[0]);
  }
  std::string log() const { return read_text_file(join_path(log_dir(), file_name_of(log_dir()) + ".log")); }
  std::vector<Json> scalars() const {
    std::vector<Json> lines;
    std::istringstream text(read_text_file(join_path(log_dir(), "vis_data/scalars.json")));
    for (std::string line; std::getline(text, line);) lines.push_back(parse_json(line, "scalars.json"));
    return lines;
  }
  /// The values of one scalar over the lines that have it.
  std::vector<double> scalar(const std::string& name) const {
    std::vector<double> values;
    for (const Json& line : scalars()) {
      if (line.contains(name)) values.push_back(line.at(name).get<double>());
    }
    return values;
  }
  /// The saved folders.
  std::set<std::string> saved() const {
    std::set<std::string> names;
    for (const DirectoryEntry& entry : list_directory(folder.path().string())) {
      if (entry.name[0] != '2' && entry.name != strategy::kLastCheckpointFile) names.insert(entry.name);
    }
    return names;
  }
  std::string weights(const std::string& name) const {
    return read_text_file(path(name + "/" + strategy::kWeightsFile));
  }

  TempDir folder = TempDir::in_memory();
  strategy::Registry registry;
  strategy::ConfigNode config;
  bool was_finished = false;
  WatchingHook::Watch watching;
};

}  // namespace castor::test
