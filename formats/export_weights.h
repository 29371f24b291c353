// Weights to a folder as Hugging Face's tools read it: model.safetensors, or numbered files with an index.
//
// Delicate: a reader that meets the folder half written must not take it for whole. Each file appears complete, the
// index last; files of an earlier export go before the index appears.
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

/// True for the name of a file that an export may have written.
bool is_exported_name(const std::string& name);

/// Writes `list` to `folder`, which is made if it is missing. Tied tensors are written once; their other names stand in
/// the metadata of the file, alias -> name. The index is {"metadata": {"total_size": bytes}, "weight_map": {name:
/// file}}. Memory: at most 128 MiB beside the names, whatever the size of the tensors. Throws IoError, EEXIST if the
/// folder is not empty and `replace` is not set, or is a checkpoint's; FormatError if the source is damaged or there is
/// nothing to write. After an exception the files that it wrote are gone.
ExportReport export_weights(const WeightList& list, const std::string& folder, const ExportOptions& options = {},
                            FileSystem& files = posix_file_system());

}  // namespace castor::formats
