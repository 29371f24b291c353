// ProfilerHook: which iterations it traces, what it says of them, and the timeline that it leaves.
#include <set>
#include <string>

#include <doctest/doctest.h>

#include "core/base/error.h"
#include "tests/support/tiny_training.h"

namespace castor::strategy {
namespace {

using test::Run;

/// A run of three epochs of three iterations.
std::string log_of(const std::string& options) {
  return Run({"log_level=INFO", "custom_hooks=[{type: ProfilerHook" + options + "}]"}).log();
}

/// The iterations that the log speaks of.
std::set<int> profiled(const std::string& log) {
  std::set<int> found;
  const std::string before = "profiler: iteration ";
  for (std::size_t at = log.find(before); at != std::string::npos; at = log.find(before, at + 1))
    found.insert(std::stoi(log.substr(at + before.size())));
  return found;
}

TEST_CASE("the iterations that are asked for are traced, epochs as the loop counts, fewer where the run ends") {
  CHECK(profiled(log_of(", by_epoch: false")) == std::set<int>{3});
  CHECK(profiled(log_of(", by_epoch: false, profile_times: 3, skip_first: 0")) == std::set<int>{1, 2, 3});
  CHECK(profiled(log_of(", skip_first: 0")) == std::set<int>{1, 2, 3});  // an epoch
  CHECK(profiled(log_of(", skip_first: 4, profile_times: 2")) ==
        std::set<int>{5, 6, 7, 8, 9});  // of the first, the rest
  CHECK(profiled(log_of(", by_epoch: false, skip_first: 7, profile_times: 9")) == std::set<int>{8, 9});
  CHECK(profiled(log_of(", skip_first: 100")).empty());
}

TEST_CASE("what was waited for, where the states lie and the longest ops are in the log, the timeline in a file") {
  const test::TempDir folder;
  const std::string path = (folder.path() / "trace.json").string();
  const std::string log = log_of(", by_epoch: false, profile_times: 2, json_trace_path: " + path);
  for (const char* part : {"profiler: iteration 4: not overlapped on cpu: ",
                           " ms (exchange 0.0, host 0.0, copies 0.0, other ", "profiler: optimizer states: ", " on cpu",
                           "took longest in 2 iterations\n  ", "matmul on cpu", "profiler: the timeline is in "}) {
    CHECK_MESSAGE(log.find(part) != std::string::npos, part);
  }
  const Json trace = read_json_file(path);
  std::set<std::string> names;
  for (const Json& event : trace.at("traceEvents")) names.insert(event.at("name").get<std::string>());
  for (const char* name : {"iteration 3", "iteration 4", "forward", "backward", "update", "matmul"})
    CHECK_MESSAGE(names.contains(name), name);
  CHECK(!names.contains("iteration 2"));
  CHECK(!names.contains("iteration 5"));
}

TEST_CASE("the peers' options that mean nothing here are refused by name") {
  CHECK_THROWS_WITH_AS(log_of(", with_stack: true"), doctest::Contains("no Python stack"), ConfigError);
  CHECK_THROWS_WITH_AS(log_of(", schedule: {wait: 1}"), doctest::Contains("say skip_first"), ConfigError);
  CHECK_THROWS_WITH_AS(log_of(", profile_times: 0"), doctest::Contains("profile_times"), ConfigError);
}

}  // namespace
}  // namespace castor::strategy
