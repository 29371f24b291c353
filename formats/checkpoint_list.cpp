// Listing, choosing and removing checkpoints.
#include "formats/checkpoint_list.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "core/base/error.h"
#include "core/base/file_error.h"
#include "formats/checkpoint_reader.h"

namespace castor::formats {

std::optional<std::int64_t> number_of(const std::string& name) {
  for (const std::string_view prefix : {"iter_", "epoch_"}) {
    if (!name.starts_with(prefix)) continue;
    const std::string digits = name.substr(prefix.size());
    const bool is_number =
        !digits.empty() && digits.size() <= 18 && digits.find_first_not_of("0123456789") == std::string::npos;
    if (is_number) return std::stoll(digits);
  }
  return std::nullopt;
}

CheckpointList list_checkpoints(const std::string& directory, FileSystem& files) {
  CheckpointList list;
  if (!is_directory(directory, files)) return list;
  for (const DirectoryEntry& entry : list_directory(directory, files)) {
    if (entry.kind != FileKind::directory) continue;
    const std::string folder = join_path(directory, entry.name);
    const bool has_manifest = exists(join_path(folder, kManifestName), files);
    if (!has_manifest) {
      if (number_of(entry.name))
        list.torn.push_back({entry.name, cat("has no ", kManifestName, ": its save was not completed"), false});
      continue;
    }
    try {
      const Checkpoint checkpoint = Checkpoint::open(folder, files);
      const std::vector<Damage> missing = checkpoint.missing_files();
      if (missing.empty()) {
        list.checkpoints.push_back({entry.name, checkpoint.manifest().save_number, checkpoint.total_bytes()});
      } else {
        list.torn.push_back({entry.name, missing.front().file + " " + missing.front().what, true});
      }
    } catch (const FormatError& error) {
      list.torn.push_back({entry.name, error.what(), true});
    } catch (const IoError& error) {
      if (!is_unreadable(error)) throw;
      list.torn.push_back({entry.name, error.what(), true});
    }
  }
  std::sort(list.checkpoints.begin(), list.checkpoints.end(), [](const ListedCheckpoint& a, const ListedCheckpoint& b) {
    return std::pair(a.save_number, number_of(a.name)) > std::pair(b.save_number, number_of(b.name));
  });
  return list;
}

std::vector<std::string> prunable_checkpoints(const CheckpointList& list, const Retention& retention) {
  if (!retention.keep_last && !retention.keep_every && !retention.keep_best) return {};
  std::vector<const ListedCheckpoint*> numbered;  // a name that no run gives was chosen by a person, and stays
  for (const ListedCheckpoint& checkpoint : list.checkpoints) {
    if (number_of(checkpoint.name)) numbered.push_back(&checkpoint);
  }
  std::set<std::string> kept;
  for (std::size_t i = 0; i < numbered.size(); ++i) {
    const std::string& name = numbered[i]->name;
    const bool is_recent = static_cast<std::int64_t>(i) < std::max<std::int64_t>(1, retention.keep_last.value_or(1));
    const bool is_nth = retention.keep_every && *number_of(name) % *retention.keep_every == 0;
    if (is_recent || is_nth) kept.insert(name);
  }
  if (retention.keep_best) {
    std::vector<std::pair<double, std::string>> scored;  // best first; of equals the newer
    for (const ListedCheckpoint* checkpoint : numbered) {
      const auto score = retention.scores.find(checkpoint->name);
      // NaN is no score: it would also have no place in the order of the others.
      if (score != retention.scores.end() && !std::isnan(score->second)) {
        scored.emplace_back(retention.greater_is_better ? score->second : -score->second, checkpoint->name);
      }
    }
    std::stable_sort(scored.begin(), scored.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
    for (std::size_t i = 0; i < scored.size() && static_cast<std::int64_t>(i) < *retention.keep_best; ++i) {
      kept.insert(scored[i].second);
    }
  }
  std::vector<std::string> prunable;
  for (auto checkpoint = numbered.rbegin(); checkpoint != numbered.rend(); ++checkpoint) {
    if (!kept.contains((*checkpoint)->name)) prunable.push_back((*checkpoint)->name);
  }
  return prunable;
}

std::uint64_t remove_checkpoint(const std::string& folder, FileSystem& files) {
  const std::uint64_t bytes = Checkpoint::open(folder, files).total_bytes();
  const std::string directory = directory_of(folder);
  for (const DirectoryEntry& entry : list_directory(directory, files)) {
    const std::string other = join_path(directory, entry.name);
    if (entry.kind != FileKind::directory || entry.name == file_name_of(folder)) continue;
    if (exists(join_path(other, kManifestName), files)) sync_directory(other, files);
  }
  sync_directory(directory, files);
  remove_file(join_path(folder, kManifestName), files);
  sync_directory(folder, files);
  remove_tree(folder, files);
  sync_directory(directory, files);
  return bytes;
}

}  // namespace castor::formats
