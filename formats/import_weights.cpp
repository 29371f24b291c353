// One data file and the commit.
#include "formats/import_weights.h"

#include <cerrno>

#include "core/base/error.h"
#include "core/base/file_error.h"
#include "formats/checkpoint_writer.h"

namespace castor::formats {
namespace {

void check_folder(const std::string& folder, bool replace, FileSystem& files) {
  if (!exists(folder, files)) return;
  const auto refuse = [&](const std::string& what) {
    throw IoError(cat("import to ", quote_name(folder, 4096), ": ", what), folder, EEXIST);
  };
  if (!is_directory(folder, files)) refuse("expected a folder, this is a file");
  const bool is_checkpoint = exists(join_path(folder, kManifestName), files);
  if (is_checkpoint && !replace) refuse("it is a checkpoint; name another folder, or give --force to replace it");
  if (!is_checkpoint && !list_directory(folder, files).empty()) refuse("the folder is not empty; name another one");
}

}  // namespace

ImportReport import_weights(const WeightList& list, const std::string& folder, const ImportOptions& options,
                            FileSystem& files) {
  if (list.weights.empty())
    throw FormatError(cat("import to ", quote_name(folder, 4096), ": there is no tensor"), folder, 0);
  check_folder(folder, options.replace, files);
  const bool is_new = !exists(folder, files);
  make_directories(folder, files);
  const SaveLocation location{folder, free_suffix(folder, files)};
  CastCounts counts;
  const BytesProgress progress = sum_of_pieces(options.progress);
  std::vector<TensorPiece> pieces;
  for (const NamedWeight& weight : list.weights) {
    pieces.push_back({weight.name, weight.role, weight.dtype, weight.tensor->shape, 0,
                      static_cast<std::int64_t>(weight.tensor->numel()), weight_bytes(weight, &counts, progress)});
  }
  CheckpointPart part;
  try {
    write_pieces(part, "model", pieces, location, files);
  } catch (...) {
    try {
      remove_file(join_path(folder, data_file_name("model", location)), files);
      if (is_new) remove_tree(folder, files);
    } catch (const IoError&) {
      // The first error says more.
    }
    throw;
  }
  commit_checkpoint(folder, std::span(&part, 1), list.aliases, 1, files);
  return {list.bytes(), counts.overflowed};
}

}  // namespace castor::formats
