// Anybody's weights to a checkpoint of ours.
//
// Delicate: what is imported is weights only, so the checkpoint has the roles param and buffer, no optimizer state and
// no state.json: a run loads it, and cannot resume from it. It is committed as every checkpoint is: until the manifest
// stands, there is none.
#pragma once

#include <cstdint>
#include <string>

#include "core/base/file.h"
#include "formats/weight_list.h"

namespace castor::formats {

/// How weights are taken.
struct ImportOptions {
  bool replace = false;  ///< a checkpoint that is in the folder
  BytesProgress progress = {};
};

/// What was taken.
struct ImportReport {
  std::uint64_t bytes = 0;       ///< of all tensors
  std::uint64_t overflowed = 0;  ///< values that the new dtype made infinite
};

/// Writes `list` as a checkpoint with save number 1 into `folder`, which is made if it is missing. Memory: at most 128
/// MiB beside the names, whatever the size of the tensors.
/// Throws IoError, EEXIST if the folder holds anything (with `replace`: anything but a checkpoint); FormatError if the
/// source is damaged or there is nothing to take. After an exception on the way to
/// the commit the folder is what it was.
ImportReport import_weights(const WeightList& list, const std::string& folder, const ImportOptions& options = {},
                            FileSystem& files = posix_file_system());

}  // namespace castor::formats
