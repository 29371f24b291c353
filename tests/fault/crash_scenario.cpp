// How the scenarios come about, the save they run and the oracle.
#include "tests/fault/crash_scenario.h"

#include <algorithm>
#include <array>
#include <optional>
#include <set>

#include "core/base/error.h"
#include "formats/checkpoint_list.h"

namespace castor::test {
namespace {

using formats::Checkpoint;
using formats::CheckpointList;
using formats::list_checkpoints;

constexpr const char* kRun = "/run";
constexpr const char* kPointer = "/run/last_checkpoint";
constexpr int kModels = 5;
constexpr int kInterrupted = 4;  // the model of a save that an interrupted program began

const CheckpointModel& model_of(int number, bool large) {
  const auto make = [](bool is_large) {
    std::array<CheckpointModel, kModels> models;
    for (int i = 0; i < kModels; ++i) {
      const auto seed = static_cast<std::uint64_t>(is_large ? 100 + i : 10 + i);
      models[static_cast<std::size_t>(i)] = CheckpointModel::random(seed, is_large ? 30'000 : 30);
    }
    return models;
  };
  static const std::array<CheckpointModel, kModels> small_models = make(false), large_models = make(true);
  return (large ? large_models : small_models)[static_cast<std::size_t>(number)];
}

// The least buffers: quick to get for small models, many operations for large ones.
StreamOptions small_buffers() {
  StreamOptions stream;
  stream.buffer_bytes = 4096;
  return stream;
}

// The operations of one more interrupted program's save on this scenario's disk.
std::vector<FileOperation> log_of_interrupted(const CrashScenario& scenario) {
  const auto disk = scenario.disk();
  FaultFileSystem seam(*disk);
  scenario.model(kInterrupted).save(scenario.folder, scenario.world_size, 3, 4, seam, small_buffers());
  return seam.log();
}

enum class Before { two, one };

// One or two durable checkpoints, the newer one of number 2, and a pointer to it.
CrashScenario base(const std::string& name, int world_size, const std::string& folder, Before before = Before::two,
                   bool large = false) {
  CrashScenario scenario;
  scenario.name = cat(name, ", ", world_size, world_size == 1 ? " rank" : " ranks");
  scenario.world_size = world_size;
  scenario.folder = folder;
  scenario.large = large;
  const auto disk = std::make_shared<MemoryFileSystem>();
  if (before == Before::two) scenario.model(0).save("/run/iter_0", world_size, 1, 1, *disk, small_buffers());
  scenario.model(1).save("/run/iter_1", world_size, 2, 2, *disk, small_buffers());
  write_file_atomically(kPointer, "iter_1", *disk);
  scenario.durable = disk;
  scenario.newest_before = {1};
  return scenario;
}

struct Moment {
  std::string name;
  std::uint64_t operation;
  bool has_manifest;  // by then the new manifest stood, for programs at least
};

// When an interrupted save may have ended.
std::vector<Moment> moments_of(const std::vector<FileOperation>& log, bool every_moment) {
  const auto first = [&log](FileOperationKind kind) -> std::optional<std::uint64_t> {
    const auto found = std::find_if(log.begin(), log.end(), [kind](const auto& step) { return step.kind == kind; });
    if (found == log.end()) return std::nullopt;
    return static_cast<std::uint64_t>(found - log.begin());
  };
  const std::uint64_t rename = first(FileOperationKind::rename).value();
  std::uint64_t last_sync = 0;
  for (std::uint64_t i = 0; i < log.size(); ++i) {
    if (log[i].kind == FileOperationKind::sync_directory) last_sync = i;
  }
  std::vector<Moment> moments;
  const auto add = [&](const std::string& name, std::uint64_t at) { moments.push_back({name, at, at > rename}); };
  if (every_moment) {
    for (std::uint64_t at = 1; at <= log.size(); ++at) add(cat("at operation ", at), at);
    return moments;
  }
  if (const auto made = first(FileOperationKind::make_directory)) add("before its folder's name was synced", *made + 1);
  add("at its first write", first(FileOperationKind::write).value() + 1);
  add("before its manifest's rename", rename);
  add("after its manifest's rename", rename + 1);
  add("before its last sync", last_sync);
  return moments;
}

}  // namespace

const CheckpointModel& CrashScenario::model(int number) const { return model_of(number, large); }

std::unique_ptr<MemoryFileSystem> CrashScenario::disk() const {
  auto disk = durable->after_power_loss(Unsynced::kept);
  for (const std::uint64_t operation : interruptions) {
    FaultFileSystem seam(*disk);
    seam.inject({operation, FaultKind::power_cut, 5});
    try {
      model(kInterrupted).save(folder, world_size, 3, 4, seam, small_buffers());
    } catch (const IoError&) {
    }
  }
  return disk;
}

void CrashScenario::run(FaultFileSystem& files, SaveProgress& progress) const {
  const auto begin = [&](const std::string& phase) { progress.phases.emplace_back(phase, files.operations()); };
  begin("look around");
  const std::uint64_t number = list_checkpoints(kRun, files).next_save_number();
  if (!only_prunes) {
    begin("make folder");
    make_directories(folder, files);
    progress.folder_made = true;
    begin("data");
    const std::string suffix = formats::free_suffix(folder, files);
    std::vector<formats::CheckpointPart> parts;
    for (int rank = 0; rank < world_size; ++rank) {
      parts.push_back(model(2).write_part({folder, suffix, rank, world_size}, 5, files, small_buffers()));
    }
    begin("commit");
    formats::commit_checkpoint(folder, parts, {{"tied", "step_scale"}}, number, files);
    progress.saved = true;
    begin("last_checkpoint");
    write_file_atomically(kPointer, file_name_of(folder), files);
    progress.pointer_written = true;
  }
  begin("look around");
  formats::Retention retention;
  retention.keep_last = 1;
  for (const std::string& name : formats::prunable_checkpoints(list_checkpoints(kRun, files), retention)) {
    begin(cat("removal of ", join_path(kRun, name)));
    formats::remove_checkpoint(join_path(kRun, name), files);
    progress.removed.push_back(join_path(kRun, name));
  }
}

std::string CrashScenario::judge(FileSystem& files, const SaveProgress& progress) const try {
  const CheckpointList list = list_checkpoints(kRun, files);
  if (list.checkpoints.empty()) return "no checkpoint is left";
  for (const formats::TornCheckpoint& torn : list.torn) {
    if (exists(join_path(join_path(kRun, torn.name), formats::kManifestName), files)) {
      return cat("a manifest stands over files that are not there: ", torn.name, ": ", torn.reason);
    }
  }
  std::set<std::string> listed;
  for (const formats::ListedCheckpoint& entry : list.checkpoints) {
    const Checkpoint checkpoint = Checkpoint::open(join_path(kRun, entry.name), files);
    int which = 0;
    while (which < kModels && !model(which).equals(checkpoint)) ++which;
    if (which == kModels || !checkpoint.verify().empty()) return cat(entry.name, " is silently wrong");
    if (listed.empty()) {
      const bool is_old = std::count(newest_before.begin(), newest_before.end(), which) > 0;
      const bool is_new = !only_prunes && which == 2;
      if (!is_new && (progress.saved || !is_old)) return cat("the newest is model ", which, ", in ", entry.name);
    }
    listed.insert(entry.name);
  }
  if (progress.folder_made && interruptions.empty() && !is_directory(folder, files))
    return "the folder that had been made is gone";
  const std::string pointer = read_text_file(kPointer, 100, files);
  if (pointer != file_name_of(folder) && (pointer != "iter_1" || progress.pointer_written)) {
    return cat("last_checkpoint says \"", pointer, "\"");
  }
  if (!only_prunes && !listed.contains(pointer)) return "last_checkpoint names what is no checkpoint";
  for (const std::string& gone : progress.removed) {
    if (exists(gone, files)) return gone + " had been removed and is back";
  }
  return "";
} catch (const Error& error) {
  return cat("an error: ", error.what());
}

std::string CrashScenario::save_next(MemoryFileSystem& files) const try {
  remove_temporary_files(kRun, files);
  model(3).save(folder, world_size, list_checkpoints(kRun, files).next_save_number(), 6, files, small_buffers());
  write_file_atomically(kPointer, file_name_of(folder), files);
  const CheckpointList list = list_checkpoints(kRun, files);
  if (list.checkpoints.empty() || join_path(kRun, list.checkpoints.front().name) != folder) {
    return "the next save is not the newest";
  }
  const Checkpoint checkpoint = Checkpoint::open(folder, files);
  if (!model(3).equals(checkpoint) || !checkpoint.verify().empty()) return "the next save is wrong";
  std::set<std::string> expected{formats::kManifestName};
  for (const formats::CheckpointFile& file : checkpoint.manifest().files) expected.insert(file.name);
  for (const DirectoryEntry& entry : list_directory(folder, files)) {
    if (!expected.contains(entry.name)) return cat("the next save left ", entry.name);
  }
  for (const DirectoryEntry& entry : list_directory(kRun, files)) {
    if (is_temporary_name(entry.name)) return cat("the next save left ", entry.name);
  }
  const auto left = files.after_power_loss(Unsynced::dropped);
  return model(3).equals(Checkpoint::open(folder, *left)) ? "" : "the next save did not last";
} catch (const Error& error) {
  return cat("the next save failed: ", error.what());
}

std::vector<CrashScenario> small_scenarios(bool all) {
  std::vector<CrashScenario> scenarios;
  for (const int world_size : {1, 3}) {
    scenarios.push_back(base("into a new folder", world_size, "/run/iter_2"));
    scenarios.push_back(base("into the same folder", world_size, "/run/iter_1"));
    if (world_size > 1 && !all) continue;
    for (const bool same : {false, true}) {
      const std::string folder = same ? "/run/iter_1" : "/run/iter_2";
      const std::vector<FileOperation> log = log_of_interrupted(base("", world_size, folder));
      for (const Moment& moment : moments_of(log, all && world_size == 1)) {
        for (const bool only_prunes : {false, true}) {
          if (only_prunes && !moment.has_manifest) continue;
          const std::string what =
              cat(only_prunes ? "retention"
                  : same      ? "into the same folder"
                              : "into a new folder",
                  " after a save", same && only_prunes ? " into it" : "", " that ended ", moment.name);
          // With one checkpoint only, whatever protects it is needed in its one removal.
          CrashScenario scenario = base(what, world_size, folder, only_prunes && !same ? Before::one : Before::two);
          scenario.interruptions = {moment.operation};
          scenario.only_prunes = only_prunes;
          if (moment.has_manifest) scenario.newest_before.push_back(kInterrupted);
          scenarios.push_back(std::move(scenario));
        }
      }
    }
    // Two programs ended one after the other: the folder's own name was never synced.
    for (const bool only_prunes : {false, true}) {
      CrashScenario scenario = base(cat(only_prunes ? "retention" : "a save", " after two that ended early"),
                                    world_size, "/run/iter_2", only_prunes ? Before::one : Before::two);
      scenario.interruptions = {moments_of(log_of_interrupted(scenario), false).front().operation};
      scenario.interruptions.push_back(moments_of(log_of_interrupted(scenario), false).back().operation);
      scenario.only_prunes = only_prunes;
      scenario.newest_before.push_back(kInterrupted);
      scenarios.push_back(std::move(scenario));
    }
  }
  return scenarios;
}

CrashScenario large_scenario() { return base("a large save", 4, "/run/iter_2", Before::two, true); }

std::vector<PowerLoss> power_losses(std::uint64_t seeds) {
  std::vector<PowerLoss> losses{{Unsynced::dropped, 0}, {Unsynced::kept, 0}};
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    losses.push_back({Unsynced::random, seed});
    losses.push_back({Unsynced::torn, seed});
  }
  return losses;
}

std::string name_of(const PowerLoss& loss) {
  static constexpr const char* kNames[] = {"dropped", "kept", "random", "torn"};
  return cat(kNames[static_cast<int>(loss.unsynced)], " (seed ", loss.seed, ")");
}

std::unique_ptr<MemoryFileSystem> run_with_faults(const CrashScenario& scenario, const std::vector<Fault>& faults,
                                                  SaveProgress& progress, std::vector<FileOperation>* log) {
  auto disk = scenario.disk();
  FaultFileSystem seam(*disk);
  for (const Fault& fault : faults) seam.inject(fault);
  try {
    scenario.run(seam, progress);
  } catch (const IoError&) {
    if (faults.empty()) throw;
  }
  if (log != nullptr) *log = seam.log();
  return disk;
}

std::size_t threads_of_this_process() { return list_directory("/proc/self/task").size(); }

}  // namespace castor::test
