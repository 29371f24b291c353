// The manifest of a checkpoint folder: which files belong to it, which tensors they hold, where every piece of every
// tensor lies, and a digest for every byte. Written last, by rename: a folder without a valid manifest is no
// checkpoint.
//
// formats/SPEC.md is the contract; this is its code. Delicate: `parse_manifest` believes nothing. What it returns holds
// together (no name leaves the folder, every element of every tensor lies in exactly one slice, every byte of every
// file is a head or in exactly one slice), so readers need no checks of their own.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/dtype.h"
#include "formats/segmented_list.h"

namespace castor::formats {

/// The manifest's name in a checkpoint's folder.
inline constexpr const char* kManifestName = "manifest.json";
/// Revision of the format that this code writes, and the newest it reads.
inline constexpr std::int64_t kCheckpointVersion = 1;
/// A slice has a digest for each block of this many bytes; its last block may be shorter.
inline constexpr std::uint64_t kDigestBlockBytes = std::uint64_t{1} << 20;
/// A longer manifest is refused.
inline constexpr std::uint64_t kMaxManifestBytes = std::uint64_t{1} << 30;

/// A file of the folder. Bytes [0, head_bytes) stand under `head_digest`; slices of tensors fill the rest.
struct CheckpointFile {
  std::string name;
  std::uint64_t bytes = 0;
  std::uint64_t head_bytes = 0;
  std::uint64_t head_digest = 0;  ///< XXH3
};

/// A piece of a tensor: elements [offset, offset + count) of its row-major order, little-endian, without gaps.
struct TensorSlice {
  std::uint32_t file = 0;   ///< index into Manifest::files
  std::uint64_t begin = 0;  ///< first byte in that file
  std::int64_t offset = 0;
  std::int64_t count = 0;              ///< >= 1
  std::vector<std::uint64_t> digests;  ///< XXH3 of each block of kDigestBlockBytes
};

/// A tensor as the model knows it, however it was cut.
struct LogicalTensor {
  std::string name;  ///< the parameter's dotted name
  std::string role;  ///< "param", "buffer", "master", or a state of the optimizer: "exp_avg", ...
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;
  SegmentedList<TensorSlice> slices;  ///< by offset; together all elements, none twice

  std::int64_t numel() const;
  std::uint64_t bytes() const { return static_cast<std::uint64_t>(numel()) * dtype_size(dtype); }
};

/// What a checkpoint's folder holds.
struct Manifest {
  std::int64_t version = kCheckpointVersion;  ///< revision that wrote it
  std::uint64_t save_number = 0;              ///< of two checkpoints beside each other the one with more is newer
  SegmentedList<CheckpointFile> files;
  SegmentedList<LogicalTensor> tensors;        ///< by role, then name
  std::map<std::string, std::string> aliases;  ///< further names of params and buffers (tied weights): alias -> name
  std::uint64_t manifest_bytes = 0;            ///< length of the text it was read from; 0 if it was not

  /// The tensor, or null. An alias is followed for the roles param and buffer.
  const LogicalTensor* find(std::string_view role, std::string_view name) const;
  /// Sorts `tensors` as `find` needs them, and each one's slices by offset.
  void sort();
};

/// The manifest's text. `manifest` must be sorted and hold together; throws FormatError{file} if it does not (as
/// parse_manifest would, reading it), so that nothing unreadable is ever committed.
///   file  the path it will have, for errors
std::string manifest_text(const Manifest& manifest, const std::string& file);

/// Reads a manifest's text and checks it. Throws FormatError{file, offset}: for a text whose digest does not match (a
/// torn or damaged one), for one that a newer Castor wrote and this one cannot read, and for anything in it that does
/// not hold together, naming the tensor or file. No allocation is larger than the text or kSegmentBytes; all of them
/// together stay below 24 times the text and 16 KiB.
Manifest parse_manifest(std::string_view text, const std::string& file);

/// True for a name that may be a file of a checkpoint: one path component of at most 255 bytes of UTF-8, without
/// control characters, slashes or a leading dot, other than the manifest's own.
bool is_checkpoint_file_name(std::string_view name);

}  // namespace castor::formats
