// Every sync of a save is needed: for each one, alone, that the disk only pretends to do, a power cut is shown after
// which the oracle of the crash tests finds something lost. So the tests would notice if the sync were removed.
#include <cstdio>
#include <map>
#include <set>

#include <doctest/doctest.h>

#include "tests/fault/crash_scenario.h"

namespace castor {
namespace {

using test::CrashScenario;
using test::SaveProgress;

bool is_sync(const FileOperation& operation) {
  return operation.kind == FileOperationKind::sync || operation.kind == FileOperationKind::sync_directory;
}

// "commit: sync_directory of the folder, number 2": the same sync in every scenario.
std::string label_of(const CrashScenario& scenario, const SaveProgress& progress, const std::vector<FileOperation>& log,
                     std::size_t at) {
  std::string phase;
  std::uint64_t phase_begin = 0;
  for (const auto& [name, begin] : progress.phases) {
    if (begin > at) break;
    phase = name;
    phase_begin = begin;
  }
  const auto place_of = [&](const FileOperation& operation) -> std::string {
    if (operation.path == "/run") return "the run's folder";
    if (phase == "removal of " + operation.path) return "the removed folder";
    if (phase.starts_with("removal")) return "a folder that stays";
    if (operation.kind == FileOperationKind::sync_directory) {
      return operation.path == scenario.folder ? "the folder" : "another checkpoint's folder";
    }
    const std::string name = file_name_of(operation.path);
    return is_temporary_name(name) ? "the temporary file" : name;
  };
  int number = 1;
  for (std::size_t i = phase_begin; i < at; ++i) {
    if (is_sync(log[i]) && place_of(log[i]) == place_of(log[at])) ++number;
  }
  return cat(
      phase.substr(0, phase.find(" of /")), ": ", file_operation_name(log[at].kind), " of ", place_of(log[at]),
      phase.starts_with("removal") && place_of(log[at]) == "a folder that stays" ? "" : cat(", number ", number));
}

// How the loss of the sync at operation `at` is noticed, or nothing.
std::string noticed(const CrashScenario& scenario, std::uint64_t at, std::uint64_t operations,
                    const std::vector<test::PowerLoss>& losses) {
  for (std::uint64_t cut = operations; cut > at; --cut) {
    SaveProgress progress;
    const auto disk =
        test::run_with_faults(scenario, {{at, FaultKind::lost_sync, 0}, {cut, FaultKind::power_cut, 5}}, progress);
    for (const test::PowerLoss& loss : losses) {
      const std::string wrong = scenario.judge(*disk->after_power_loss(loss.unsynced, loss.seed), progress);
      if (!wrong.empty()) {
        return cat(scenario.name, ", power cut at operation ", cut, " of ", operations, ", ", test::name_of(loss), ": ",
                   wrong);
      }
    }
  }
  return "";
}

TEST_CASE("the loss of any one sync of a save is noticed") {
  const auto losses = test::power_losses(6);
  std::map<std::string, std::string> labels;  // how each was noticed; empty: not yet
  for (const CrashScenario& scenario : test::small_scenarios(false)) {
    SaveProgress progress;
    std::vector<FileOperation> log;
    test::run_with_faults(scenario, {}, progress, &log);
    for (std::size_t at = 0; at < log.size(); ++at) {
      if (!is_sync(log[at])) continue;
      std::string& how = labels[label_of(scenario, progress, log, at)];
      if (how.empty()) how = noticed(scenario, at, log.size(), losses);
    }
  }
  std::size_t missed = 0;
  for (const auto& [label, how] : labels) {
    std::printf("  %s\n    %s\n", label.c_str(), how.empty() ? "NOT NOTICED" : how.c_str());
    if (how.empty()) ++missed;
  }
  std::printf("lost syncs: %zu, noticed: %zu\n", labels.size(), labels.size() - missed);
  CHECK(labels.size() > 10);
  CHECK(missed == 0);
}

}  // namespace
}  // namespace castor
