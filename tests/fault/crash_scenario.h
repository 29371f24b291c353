// Saves that are interrupted, and what must be left: the ground of the crash tests of this folder.
//
// A scenario is a run's folder in memory with durable checkpoints, perhaps with what an interrupted program left there,
// and the save that is about to happen in it: into a new folder or one that is there already, then `last_checkpoint`,
// then retention. Delicate: the oracle `judge` knows only what had returned before the power went; everything that had
// must hold, and what had not may have happened or not, but never by halves.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/base/file_fault.h"
#include "core/base/file_memory.h"
#include "tests/support/checkpoint_model.h"

namespace castor::test {

/// How far a run had come, told by what returned.
struct SaveProgress {
  bool folder_made = false;
  bool saved = false;
  bool pointer_written = false;
  std::vector<std::string> removed;                           ///< folders that remove_checkpoint returned for
  std::vector<std::pair<std::string, std::uint64_t>> phases;  ///< what began, and at which operation of the seam
};

/// A disk before a save, and the save.
struct CrashScenario {
  std::string name;
  int world_size = 1;
  std::string folder;        ///< where the save goes
  bool only_prunes = false;  ///< no save: a restarted program removes all but the newest
  bool large = false;        ///< models of hundreds of KB instead of a few, through small buffers
  std::shared_ptr<const MemoryFileSystem> durable;  ///< the disk before any interruption, all of it synced
  std::vector<std::uint64_t> interruptions;         ///< saves of model 4 into `folder`, ended at these operations
  std::vector<int> newest_before;                   ///< models that may be the newest until the save returns

  /// A fresh disk as the save finds it, un-synced changes of interrupted programs included.
  std::unique_ptr<MemoryFileSystem> disk() const;
  /// Model `number`: 0 and 1 are saved before, 2 is the save, 3 the one after it, 4 what an interrupted program saved.
  const CheckpointModel& model(int number) const;
  /// The save, with everything that belongs to it.
  void run(FaultFileSystem& files, SaveProgress& progress) const;
  /// Saves model 3 into the same place, and checks that it is the newest, that nothing else is left there and that it
  /// lasts. Returns what is wrong, or nothing.
  std::string save_next(MemoryFileSystem& files) const;
  /// What is wrong with what a crash left, or nothing.
  std::string judge(FileSystem& files, const SaveProgress& progress) const;
};

/// The small scenarios: of one and three ranks, and of one rank onto what an interrupted save left. `all`: those of
/// three ranks too, and every operation at which the interrupted one may have ended instead of the telling ones.
std::vector<CrashScenario> small_scenarios(bool all);
/// One save of four ranks, with hundreds of operations.
CrashScenario large_scenario();

/// A state that a power loss may leave.
struct PowerLoss {
  Unsynced unsynced = Unsynced::dropped;
  std::uint64_t seed = 0;
};

/// dropped, kept, and `seeds` of random and torn each.
std::vector<PowerLoss> power_losses(std::uint64_t seeds);
/// "torn (seed 3)".
std::string name_of(const PowerLoss& loss);

/// Runs a scenario with `faults` and gives the disk as the program last saw it; `log`, where given, gets the
/// operations.
std::unique_ptr<MemoryFileSystem> run_with_faults(const CrashScenario& scenario, const std::vector<Fault>& faults,
                                                  SaveProgress& progress, std::vector<FileOperation>* log = nullptr);

/// Threads of this process.
std::size_t threads_of_this_process();

}  // namespace castor::test
