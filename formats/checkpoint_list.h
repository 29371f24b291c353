// The checkpoints of a run's folder: which there are, which is the newest, and which may go.
//
// Delicate: a folder counts as a checkpoint only if its manifest is valid and all its files have the right sizes; what
// a crash left behind is named and skipped. Deleting takes the manifest first: a folder that loses power half deleted
// is no checkpoint, never a damaged one.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/base/file.h"

namespace castor::formats {

/// The N of iter_N or epoch_N, what a run names its checkpoints; nothing for other names.
std::optional<std::int64_t> number_of(const std::string& name);

/// One checkpoint beside others.
struct ListedCheckpoint {
  std::string name;  ///< of its folder
  std::uint64_t save_number = 0;
  std::uint64_t bytes = 0;  ///< of all files
};

/// A folder that looks like a checkpoint and is not.
struct TornCheckpoint {
  std::string name;
  std::string reason;
  bool was_committed = false;  ///< its save was completed once: it was damaged since
};

struct CheckpointList {
  std::vector<ListedCheckpoint> checkpoints;  ///< newest first
  std::vector<TornCheckpoint> torn;           ///< by name

  /// The number the next save gets: larger than any here.
  std::uint64_t next_save_number() const { return checkpoints.empty() ? 1 : checkpoints.front().save_number + 1; }
};

/// Looks through the folders of `directory` (none there: an empty list). A folder is torn if it is called like a
/// checkpoint (`iter_N`, `epoch_N`) or has a manifest, and is not valid or cannot be read.
/// Throws IoError.
CheckpointList list_checkpoints(const std::string& directory, FileSystem& files = posix_file_system());

/// Which checkpoints stay; everything unset keeps nothing by itself. Nothing set at all keeps every one.
struct Retention {
  std::optional<std::int64_t> keep_last;   ///< the newest k, k >= 1
  std::optional<std::int64_t> keep_every;  ///< those whose number (the N of iter_N or epoch_N) is a multiple of this
  std::optional<std::int64_t> keep_best;   ///< the best m by `scores`
  std::map<std::string, double> scores;    ///< by folder name; those without one, or NaN, are never best
  bool greater_is_better = true;
};

/// The names that may go under `retention`, oldest first. One that is not called iter_N or epoch_N never goes, nor does
/// it count among those that are kept; of the others the newest always stays.
std::vector<std::string> prunable_checkpoints(const CheckpointList& list, const Retention& retention);

/// Removes a checkpoint durably, manifest first, once the names of those beside it are durable: a program that ended
/// before its last sync may have left the newest one un-synced. Returns the bytes freed. Throws IoError.
std::uint64_t remove_checkpoint(const std::string& folder, FileSystem& files = posix_file_system());

}  // namespace castor::formats
