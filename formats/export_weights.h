// Weights to a folder as Hugging Face's tools read it: model.safetensors, or numbered files with an index.
//
// Delicate: a reader that meets the folder half written must not take it for whole. Each file appears complete, the
// index last; files of an earlier export go before the index appears. A folder that is to be replaced as a whole goes
// only if it is an earlier export and nothing else, and not before the new one has its name.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/base/file.h"
#include "formats/weight_list.h"

namespace castor::formats {

/// Name of the one file, and of the index of several.
inline constexpr const char* kExportName = "model.safetensors";
inline constexpr const char* kExportIndexName = "model.safetensors.index.json";

/// How weights are written.
struct ExportOptions {
  std::uint64_t max_shard_bytes = 5'000'000'000;  ///< of a file's tensors; a larger tensor gets a file of its own
  bool replace = false;                           ///< into a folder that is not empty
  BytesProgress progress = {};
};

/// What was written.
struct ExportReport {
  std::vector<std::string> files;  ///< names in the folder, the index not among them
  std::uint64_t bytes = 0;         ///< of all tensors
  std::uint64_t overflowed = 0;    ///< values that the new dtype made infinite
};

/// Writes `list` to `folder`, which is made if it is missing. Tied tensors are written once; their other names stand in
/// the metadata of the file, alias -> name. The index is {"metadata": {"total_size": bytes}, "weight_map": {name:
/// file}}. Memory: at most 128 MiB beside the names, whatever the size of the tensors. Throws IoError, EEXIST if the
/// folder is not empty and `replace` is not set, or is a checkpoint's; FormatError if the source is damaged or there is
/// nothing to write. After an exception the files that it wrote are gone.
ExportReport export_weights(const WeightList& list, const std::string& folder, const ExportOptions& options = {},
                            FileSystem& files = posix_file_system());

/// Throws IoError, EEXIST, if at `folder` is what replace_export must not replace: a file, a checkpoint, or a folder
/// that holds anything that export_weights does not write.
void check_replaceable(const std::string& folder, FileSystem& files = posix_file_system());

/// Gives the finished export `from` the name `to`, in the place of an earlier one, which is removed after that. Both
/// must lie on one file system. A crash leaves the earlier one or the new one, whole: as `to`, or for the moment
/// between two renames the earlier one as `to`.replaced, where export_at finds it and the next replace_export removes
/// it. Throws as check_replaceable, before anything is touched; IoError.
void replace_export(const std::string& from, const std::string& to, FileSystem& files = posix_file_system());

/// Where the export `folder` is: there, or beside it if a crash came while it was being replaced.
std::string export_at(const std::string& folder, FileSystem& files = posix_file_system());

}  // namespace castor::formats
