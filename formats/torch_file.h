// PyTorch's checkpoints since version 1.6 (`.pth`, `.pt`, `.bin`): an archive of one pickle and of the bytes that its
// tensors view. Read without running anything.
//
// Delicate: tensors may share bytes (tied weights), skip bytes (slices), reorder them (transposed) or repeat them
// (expanded), so a small file can show more than it holds: what a state dict shows in all has a limit. Who imports a
// file calls `verify` first: ranges of an entry are read without its checksum.
//
// Source of the format: PyTorch, torch/serialization.py (`_save`) and caffe2/serialize/inline_container.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/base/file.h"
#include "formats/pickle_value.h"
#include "formats/safetensors.h"
#include "formats/torch_pickle.h"
#include "formats/zip_archive.h"

namespace castor::formats {

/// A tensor of a state dict.
struct TorchStateTensor {
  std::string name;                     ///< "blocks.3.attn.qkv.weight"; inner dicts and lists are joined by dots
  const TorchTensor* tensor = nullptr;  ///< of the file's tree
  std::optional<std::size_t> alias_of;  ///< index of an earlier tensor with the same bytes, dtype, sizes and strides
};

/// Tensors by name.
struct TorchStateDict {
  std::string key;                          ///< under which the file has it: "state_dict"; empty if at the top
  SegmentedList<TorchStateTensor> tensors;  ///< in file order; names are unique
  SegmentedList<std::string> skipped;       ///< names of values that are no tensors, in file order

  /// The tensor called `name`, or null.
  const TorchStateTensor* find(std::string_view name) const;

  /// Indices into `tensors`, sorted by name: what `find` searches.
  SegmentedList<std::uint32_t> by_name;
};

/// How a file is read.
struct TorchFileOptions {
  PickleOptions pickle;
  /// Most bytes that the distinct tensors of a state dict, expanded ones as large as they look, may take together, and
  /// any one tensor; 0 = 8 times the file and a MiB.
  std::uint64_t max_logical_bytes = 0;
};

/// An open checkpoint: its values, and the bytes of any tensor on request.
class TorchFile {
 public:
  /// Opens and reads all but the tensors' bytes. Throws IoError; FormatError as ZipArchive::open and
  /// parse_torch_pickle do, for a file from before torch 1.6, TorchScript, big-endian numbers, a version beyond 10, and
  /// a storage that is missing or has another size than the pickle says.
  static TorchFile open(const std::string& path, const TorchFileOptions& options = {},
                        FileSystem& files = posix_file_system());

  const std::string& path() const { return archive_->path(); }
  const ZipArchive& archive() const { return *archive_; }
  /// Everything that was saved; valid while this object, or one moved from it, lives.
  const PickleValue& root() const { return *tree_.root; }

  /// The names and tensors of a model.
  ///   key  the entry of the top dict to take. Empty: the first dict among state_dict, model_state_dict, model and
  ///        module; otherwise the top dict itself, which must then have a tensor or be empty.
  /// Inner dicts and lists are flattened; names keep prefixes such as "module.". Throws FormatError if there is no such
  /// dict, for keys that are no texts or integers, for two tensors of one name, and beyond max_logical_bytes.
  TorchStateDict state_dict(std::string_view key = {}) const;

  /// The tensor's bytes, contiguous and row-major, in pieces; memory for a view that is not contiguous is at most
  /// kMaxStridedWindowBytes and what it views. This object must outlive the source, which serves one thread at a time.
  /// Throws FormatError if the tensor alone is beyond max_logical_bytes. `tensor` must be of this file.
  ByteSource source(const TorchTensor& tensor) const;
  /// All of them at once.
  std::vector<std::byte> read(const TorchTensor& tensor) const;
  /// Compares the checksum of every entry. Throws FormatError naming the first that differs.
  void verify() const;

 private:
  TorchFile(std::unique_ptr<const ZipArchive> archive, std::string folder, PickleTree tree, std::uint64_t limit,
            std::uint64_t pickle_at)
      : archive_(std::move(archive)),
        folder_(std::move(folder)),
        tree_(std::move(tree)),
        max_logical_bytes_(limit),
        pickle_at_(pickle_at) {}

  void check_storages() const;
  const ZipEntry& entry_of(const TorchStorage& storage) const;
  void check_size(const TorchTensor& tensor) const;

  std::unique_ptr<const ZipArchive> archive_;  // sources refer to it
  std::string folder_;                         // "name/", before every entry
  PickleTree tree_;
  std::uint64_t max_logical_bytes_;
  std::uint64_t pickle_at_;  // byte of the file
};

}  // namespace castor::formats
