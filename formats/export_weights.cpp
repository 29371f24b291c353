// Shards, files, index.
#include "formats/export_weights.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "core/base/error.h"
#include "core/base/file_error.h"
#include "core/base/json.h"
#include "formats/safetensors.h"

namespace castor::formats {
namespace {

using Shard = std::vector<const NamedWeight*>;

std::uint64_t bytes_of(const NamedWeight& weight) { return weight.tensor->numel() * dtype_size(weight.dtype); }

std::vector<Shard> cut(const WeightList& list, std::uint64_t max_bytes) {
  std::vector<Shard> shards(1);
  std::uint64_t held = 0;
  for (const NamedWeight& weight : list.weights) {
    const std::uint64_t bytes = bytes_of(weight);
    if (!shards.back().empty() && (bytes > max_bytes || held > max_bytes - bytes)) {
      shards.emplace_back();
      held = 0;
    }
    shards.back().push_back(&weight);
    held += bytes;
  }
  return shards;
}

std::string shard_name(std::size_t number, std::size_t count) {
  if (count == 1) return kExportName;
  char name[80];
  std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", number + 1, count);
  return name;
}

// A file that an export may have written: a folder is only replaced as far as it is one.
bool is_exported_name(const std::string& name) {
  return name == kExportName || name == kExportIndexName ||
         (name.starts_with("model-") && name.ends_with(".safetensors"));
}

void write_shard(const Shard& shard, const WeightList& list, const std::string& path, CastCounts& counts,
                 const BytesProgress& progress, FileSystem& files) {
  SafetensorsOptions options;
  options.metadata = {{"format", "pt"}};
  std::vector<SafetensorsTensor> tensors;
  for (const NamedWeight* weight : shard) {
    tensors.push_back({weight->name, weight->dtype, weight->tensor->shape, weight_bytes(*weight, &counts, progress)});
  }
  // A shard is a stretch of the sorted list.
  for (const auto& [alias, name] : list.aliases) {
    if (name >= shard.front()->name && name <= shard.back()->name) options.metadata[alias] = name;
  }
  write_safetensors(path, tensors, options, files);
}

std::string index_text(const std::vector<Shard>& shards, std::uint64_t bytes) {
  Json index;
  index["metadata"]["total_size"] = bytes;
  Json& map = index["weight_map"] = Json::object();
  for (std::size_t i = 0; i < shards.size(); ++i) {
    for (const NamedWeight* weight : shards[i]) {
      // Appended as it is: looking for each of many keys first would be quadratic, and names are unique.
      map.get_ref<Json::object_t&>().emplace_back(weight->name, shard_name(i, shards.size()));
    }
  }
  return dump_json(index, 2) + "\n";
}

[[noreturn]] void refuse(const std::string& folder, const std::string& what) {
  throw IoError(cat("export to ", quote_name(folder, 4096), ": ", what), folder, EEXIST);
}

void check_folder(const std::string& folder, bool replace, FileSystem& files) {
  if (!exists(folder, files)) return;
  if (!is_directory(folder, files)) refuse(folder, "expected a folder, this is a file");
  if (exists(join_path(folder, kManifestName), files)) refuse(folder, "it is a checkpoint; name another folder");
  if (!replace && !list_directory(folder, files).empty()) {
    refuse(folder, "the folder is not empty; name another one, or give --force to replace an earlier export");
  }
}

// What a folder is called while the one that takes its place gets its name.
std::string name_aside(const std::string& folder) {
  return join_path(directory_of(folder), file_name_of(folder) + ".replaced");
}

}  // namespace

ExportReport export_weights(const WeightList& list, const std::string& folder, const ExportOptions& options,
                            FileSystem& files) {
  if (list.weights.empty())
    throw FormatError(cat("export to ", quote_name(folder, 4096), ": there is no tensor"), folder, 0);
  check_folder(folder, options.replace, files);
  const bool is_new = !exists(folder, files);
  make_directories(folder, files);
  const std::vector<Shard> shards = cut(list, options.max_shard_bytes);
  ExportReport report;
  report.bytes = list.bytes();
  CastCounts counts;
  const BytesProgress progress = sum_of_pieces(options.progress);
  try {
    remove_file(join_path(folder, kExportIndexName), files);
    for (std::size_t i = 0; i < shards.size(); ++i) {
      const std::string name = shard_name(i, shards.size());
      report.files.push_back(name);
      write_shard(shards[i], list, join_path(folder, name), counts, progress, files);
    }
    for (const DirectoryEntry& entry : list_directory(folder, files)) {
      const bool is_written = std::find(report.files.begin(), report.files.end(), entry.name) != report.files.end();
      if (is_exported_name(entry.name) && !is_written) remove_file(join_path(folder, entry.name), files);
    }
    if (shards.size() > 1) {
      write_file_atomically(join_path(folder, kExportIndexName), index_text(shards, report.bytes), files);
    }
  } catch (...) {
    try {
      for (const std::string& name : report.files) remove_file(join_path(folder, name), files);
      if (is_new) remove_tree(folder, files);
    } catch (const IoError&) {
      // The first error says more.
    }
    throw;
  }
  report.overflowed = counts.overflowed;
  return report;
}

void check_replaceable(const std::string& folder, FileSystem& files) {
  check_folder(folder, /*replace=*/true, files);
  if (!exists(folder, files)) return;
  for (const DirectoryEntry& entry : list_directory(folder, files)) {
    const bool is_export = is_exported_name(entry.name) || is_temporary_name(entry.name);
    if (entry.kind != FileKind::file || !is_export) {
      refuse(folder, cat("expected an earlier export, the folder also holds ", quote_name(entry.name),
                         ", which would go with it; name another folder, or move that away"));
    }
  }
}

void replace_export(const std::string& from, const std::string& to, FileSystem& files) {
  const std::string aside = name_aside(to), directory = directory_of(to);
  check_replaceable(to, files);
  check_replaceable(aside, files);
  if (exists(to, files)) {
    if (exists(aside, files)) {
      sync_directory(directory, files);  // else the name of what took its place may be lost, and it is gone
      remove_tree(aside, files);
    }
    rename_file(to, aside, files);
    try {
      rename_file(from, to, files);
    } catch (const IoError&) {
      files.rename(aside, to);  // best effort: where this fails, too, export_at finds it
      throw;
    }
  } else {
    rename_file(from, to, files);
  }
  sync_directory(directory, files);
  remove_tree(aside, files);
}

std::string export_at(const std::string& folder, FileSystem& files) {
  const std::string aside = name_aside(folder);
  return !exists(folder, files) && is_directory(aside, files) ? aside : folder;
}

}  // namespace castor::formats
