// Writing a checkpoint's folder: every rank its own data files, then one rank the manifest.
//
// The order is what makes it safe: data files are complete and synced, their names are synced, and only then does the
// manifest appear, by rename. Until it does the folder holds what it held before. Delicate: a folder that already is a
// checkpoint may be saved into again; its files stay untouched until the new manifest stands, so the new ones get other
// names (`free_suffix`), and are removed only then.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "core/base/file.h"
#include "core/base/file_stream.h"
#include "formats/manifest.h"
#include "formats/safetensors.h"

namespace castor::formats {

/// Elements [offset, offset + count) of a logical tensor, in row-major order, and where their bytes come from.
struct TensorPiece {
  std::string name;
  std::string role;
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;  ///< of the whole tensor
  std::int64_t offset = 0;
  std::int64_t count = 0;  ///< 0: this rank holds nothing of it, which is still recorded for tensors without elements
  std::variant<std::span<const std::byte>, ByteSource> data;  ///< of the piece: count elements, little-endian
};

/// What one rank wrote: files, and the slices that lie in them. `manifest_text` and `parse_part` carry it to the rank
/// that commits.
struct CheckpointPart {
  SegmentedList<CheckpointFile> files;
  SegmentedList<LogicalTensor> tensors;  ///< each with only the slices of this rank; several for one tensor are allowed
};

/// One rank's part of a save.
struct SaveLocation {
  std::string folder;  ///< the checkpoint's own
  std::string suffix;  ///< what free_suffix gave the committing rank
  int rank = 0;
  int world_size = 1;
};

/// What to put into the names of a save's files so that they are not those of the checkpoint that is in `folder` now:
/// "" where there is none, else "" or "2", whichever is free. Makes that checkpoint's names durable first. Throws
/// IoError.
std::string free_suffix(const std::string& folder, FileSystem& files = posix_file_system());

/// The name of a data file: "model.safetensors", of several ranks "model-00001-of-00004.safetensors", with a suffix
/// "model.2.safetensors".
std::string data_file_name(std::string_view stem, const SaveLocation& location);

/// The stem in a name that data_file_name gives ("model" of "model-00002-of-00004.2.safetensors"); nothing for others.
std::optional<std::string> stem_of_data_file(std::string_view name);

/// Writes `pieces` as one safetensors file of that name, synced, through bounded buffers, hashing on the way. In it a
/// whole tensor is called by its name, or "role/name" for roles other than param and buffer; a cut one has one axis and
/// "[offset:end]" behind its name. No file is written if there is nothing to put into it. Adds to `part`.
/// Throws IoError; FormatError or ShapeError for pieces that cannot be written (as plan_safetensors) or do not lie
/// within their tensor.
void write_pieces(CheckpointPart& part, std::string_view stem, std::span<const TensorPiece> pieces,
                  const SaveLocation& location, FileSystem& files = posix_file_system(),
                  const StreamOptions& stream = {});

/// Writes a file of other contents ("state.json"), synced, under its stem and extension. Adds to `part`.
void write_text(CheckpointPart& part, std::string_view stem, std::string_view extension, std::string_view contents,
                const SaveLocation& location, FileSystem& files = posix_file_system());

/// A part as bytes, and back. Throws FormatError for bytes that are no part.
std::string part_text(const CheckpointPart& part);
CheckpointPart parse_part(std::string_view text);

/// Makes the parts of all ranks one checkpoint: syncs the folder's names, writes the manifest, then removes, as far as
/// it can, files of the checkpoint it replaces and what interrupted saves left: temporary files, and data files of the
/// same stems. When it returns the checkpoint survives any crash; if it throws, the folder is what it was, except after
/// an error of the last two syncs, of the folder and of its own name (see write_file_atomically). Throws FormatError if
/// the parts do not make whole tensors; IoError.
void commit_checkpoint(const std::string& folder, std::span<const CheckpointPart> parts,
                       const std::map<std::string, std::string>& aliases, std::uint64_t save_number,
                       FileSystem& files = posix_file_system());

}  // namespace castor::formats
