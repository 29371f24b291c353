// Anybody's weights under one roof: a checkpoint of ours, safetensors files, PyTorch files, Hugging Face and
// ColossalAI/mmengine folders all become a list of named tensors, each of which can be streamed.
//
// What compares, imports or exports works on this list and knows no format. Delicate: bytes are checked as far as the
// format allows (digests block by block, checksums of zip entries before anything is taken), and memory stays bounded:
// a stream holds at most one window, so streams are opened when they are needed and dropped at their end.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/file.h"
#include "formats/checkpoint_reader.h"
#include "formats/safetensors.h"

namespace castor::formats {

/// One tensor of a source.
struct SourceTensor {
  std::string name;
  std::string role;  ///< as LogicalTensor; of files without roles "param", or "buffer" for names as is_buffer_name
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;
  std::function<ByteSource()> open;  ///< a stream of its bytes, row-major; to be read from the start to the end

  std::uint64_t numel() const;
  std::uint64_t bytes() const { return numel() * dtype_size(dtype); }
};

/// Where tensors come from.
struct TensorSource {
  std::string path;                            ///< what was opened: a folder or a file
  std::string kind;                            ///< "checkpoint", "safetensors", "PyTorch": for people
  bool has_roles = false;                      ///< the roles were read; else they were guessed from the names
  std::vector<SourceTensor> tensors;           ///< by role, then name
  std::map<std::string, std::string> aliases;  ///< further names of params and buffers: alias -> name
  std::vector<std::string> files;              ///< paths that hold the bytes
  std::vector<std::string> notes;              ///< what was chosen and what was left out, one sentence each

  /// The tensor, or null; no alias is followed.
  const SourceTensor* find(std::string_view role, std::string_view name) const;
  /// Bytes of all tensors.
  std::uint64_t bytes() const;
};

/// How a source is opened.
struct SourceOptions {
  std::string key;        ///< the entry of a PyTorch file's dict that holds the weights; empty: the usual ones
  bool checksums = true;  ///< compare the checksums of zip archives, which reads them once more
};

/// True for buffers by convention: the last part of the name is running_mean, running_var or num_batches_tracked.
bool is_buffer_name(std::string_view name);
/// True for the roles of what a model is made of: param and buffer.
bool is_weight_role(std::string_view role);

/// Opens what `path` names:
///   a checkpoint's folder; a folder of checkpoints (its newest valid one, else what its last_checkpoint names)
///   a .safetensors file; a PyTorch file since 1.6; an index (*.index.json) of either
///   a folder with one index, or one weights file; a folder whose "model" holds those (ColossalAI, mmengine)
/// Names of files in an index must be plain names. Throws IoError; FormatError for what is none of these or damaged,
/// saying what was looked for.
TensorSource open_tensor_source(const std::string& path, const SourceOptions& options = {},
                                FileSystem& files = posix_file_system());

/// The tensors of a checkpoint; whole blocks are read, so that every byte is checked against its digest.
TensorSource checkpoint_source(std::shared_ptr<const Checkpoint> checkpoint);

/// The tensors of one safetensors or PyTorch file, told apart by their content.
TensorSource weights_file_source(const std::string& path, const SourceOptions& options = {},
                                 FileSystem& files = posix_file_system());

/// The tensors that a Hugging Face index (`{"weight_map": {name: file}}`) maps to files beside it. Throws FormatError
/// if a file's name is no plain name, or a file lacks a tensor that it should have.
TensorSource index_source(const std::string& path, const SourceOptions& options = {},
                          FileSystem& files = posix_file_system());

/// The tensor's bytes as a source that opens its stream at the first call and drops it at the end: many of these may
/// wait at once.
ByteSource deferred_source(const SourceTensor& tensor);

}  // namespace castor::formats
