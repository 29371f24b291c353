// Power cuts, failing disks and full disks at every operation of a save: afterwards the newest checkpoint is the old
// one or the new one, bit-equal, the new one if its save had returned, and the next save succeeds.
#include <cerrno>
#include <cstdio>
#include <random>

#include <doctest/doctest.h>

#include "tests/fault/crash_scenario.h"
#include "tests/support/long_run.h"

namespace castor {
namespace {

using test::CrashScenario;
using test::PowerLoss;
using test::SaveProgress;

struct Counts {
  std::size_t points = 0, states = 0, next_saves = 0, wrong = 0;

  void print(const char* what) const {
    std::printf("%s: %zu points, %zu states after them, %zu next saves, %zu lost or wrong\n", what, points, states,
                next_saves, wrong);
  }
};

// Cuts the power at one operation and looks at each state that this may leave.
void cut_power(const CrashScenario& scenario, std::uint64_t operation, const std::vector<PowerLoss>& losses,
               Counts& counts) {
  SaveProgress progress;
  const auto disk = test::run_with_faults(scenario, {{operation, FaultKind::power_cut, EIO}}, progress);
  ++counts.points;
  for (const PowerLoss& loss : losses) {
    const auto left = disk->after_power_loss(loss.unsynced, loss.seed);
    std::string wrong = scenario.judge(*left, progress);
    const bool saves_next = test::long_run() || counts.states % 3 == 0;
    ++counts.states;
    if (wrong.empty() && saves_next) {
      wrong = scenario.save_next(*left);
      ++counts.next_saves;
    }
    if (wrong.empty()) continue;
    ++counts.wrong;
    FAIL_CHECK(scenario.name, ": power cut at operation ", operation, ", un-synced changes ", test::name_of(loss), ": ",
               wrong);
  }
}

std::uint64_t operations_of(const CrashScenario& scenario) {
  SaveProgress progress;
  std::vector<FileOperation> log;
  const auto disk = test::run_with_faults(scenario, {}, progress, &log);
  CHECK(scenario.judge(*disk, progress) == "");
  return log.size();
}

TEST_CASE("a power cut at any operation of a small save leaves the old checkpoint or the new one") {
  Counts counts;
  const auto losses = test::power_losses(test::long_run() ? 8 : 2);
  const std::vector<CrashScenario> scenarios = test::small_scenarios(test::long_run());
  for (const CrashScenario& scenario : scenarios) {
    const std::uint64_t operations = operations_of(scenario);
    for (std::uint64_t at = 0; at <= operations; ++at) cut_power(scenario, at, losses, counts);
  }
  std::printf("%zu scenarios; ", scenarios.size());
  counts.print("power cuts in small saves");
  CHECK(counts.wrong == 0);
}

TEST_CASE("a power cut at random operations of a larger save leaves the old checkpoint or the new one") {
  const CrashScenario scenario = test::large_scenario();
  const std::uint64_t operations = operations_of(scenario);
  std::mt19937_64 random(7);
  Counts counts;
  const int points = test::long_run() ? 2000 : 50;
  for (int i = 0; i < points; ++i) {
    const std::uint64_t seed = random();
    cut_power(scenario, random() % (operations + 1),
              {{Unsynced::dropped, 0}, {Unsynced::kept, 0}, {Unsynced::random, seed}, {Unsynced::torn, seed}}, counts);
  }
  std::printf("of %llu operations; ", static_cast<unsigned long long>(operations));
  counts.print("power cuts in a larger save");
  CHECK(counts.wrong == 0);
}

TEST_CASE("an operation that fails or transfers less is an IoError or nothing, and costs no checkpoint") {
  struct Kind {
    FaultKind kind;
    int error;
  };
  const std::size_t threads = test::threads_of_this_process();
  std::size_t points = 0, errors = 0, successes = 0;
  for (const CrashScenario& scenario : test::small_scenarios(false)) {
    if (!test::long_run() && !scenario.interruptions.empty()) continue;
    const std::uint64_t operations = operations_of(scenario);
    for (const Kind& kind : {Kind{FaultKind::error, ENOSPC}, Kind{FaultKind::error, EIO}, Kind{FaultKind::error, EINTR},
                             Kind{FaultKind::short_transfer, 0}}) {
      for (std::uint64_t at = 0; at < operations; ++at) {
        const auto disk = scenario.disk();
        FaultFileSystem seam(*disk);
        seam.inject({at, kind.kind, kind.error});
        SaveProgress progress;
        bool failed = false;
        std::string wrong;
        try {
          scenario.run(seam, progress);
        } catch (const IoError& error) {
          failed = true;
          if (kind.kind == FaultKind::error && error.code != kind.error) wrong = cat("another error: ", error.what());
        } catch (const std::exception& error) {
          wrong = cat("no IoError: ", error.what());
        }
        ++points;
        ++(failed ? errors : successes);
        if (failed && kind.kind == FaultKind::short_transfer) wrong = "a short transfer is no failure";
        if (wrong.empty()) wrong = scenario.judge(*disk, progress);
        if (wrong.empty()) wrong = scenario.save_next(*disk);
        if (!wrong.empty()) {
          FAIL_CHECK(scenario.name, ": ", kind.kind == FaultKind::error ? "error " : "short transfer ", kind.error,
                     " at operation ", at, " (", file_operation_name(seam.log()[at].kind), " ", seam.log()[at].path,
                     "): ", wrong);
        }
      }
    }
  }
  CHECK(test::threads_of_this_process() == threads);
  std::printf("failing operations: %zu points, %zu typed errors, %zu saves that went on\n", points, errors, successes);
}

TEST_CASE("a disk that is full at any byte is an IoError, and a save succeeds once there is room") {
  std::size_t points = 0, full = 0;
  for (const CrashScenario& scenario : test::small_scenarios(false)) {
    if (scenario.only_prunes || !scenario.interruptions.empty()) continue;
    const auto used = [](MemoryFileSystem& disk) {
      disk.set_capacity(std::uint64_t{1} << 40);
      return (std::uint64_t{1} << 40) - free_bytes("/", disk);
    };
    SaveProgress whole;
    const std::uint64_t before = used(*scenario.disk());
    const std::uint64_t step = test::long_run() ? 7 : 211;
    for (std::uint64_t room = 0;; room += step) {
      const auto disk = scenario.disk();
      disk->set_capacity(before + room);
      FaultFileSystem seam(*disk);
      SaveProgress progress;
      std::string wrong;
      bool failed = false;
      try {
        scenario.run(seam, progress);
      } catch (const IoError& error) {
        failed = true;
        if (error.code != ENOSPC) wrong = error.what();
      }
      ++points;
      if (wrong.empty()) wrong = scenario.judge(*disk, progress);
      disk->set_capacity(std::uint64_t{1} << 40);
      if (wrong.empty()) wrong = scenario.save_next(*disk);
      if (!wrong.empty()) FAIL_CHECK(scenario.name, ": ", room, " bytes of room: ", wrong);
      if (!failed) break;
      ++full;
    }
  }
  std::printf("full disks: %zu sizes, %zu of them too small\n", points, full);
  CHECK(full > 0);
}

}  // namespace
}  // namespace castor
