// Weights in and out through formats/safetensors; tied parameters are stored once.
#include "strategy/checkpoint.h"

#include <cerrno>
#include <set>

#include "core/base/file.h"
#include "core/ops/cast.h"
#include "formats/safetensors.h"

namespace castor::strategy {
namespace {

std::vector<std::pair<std::string, autograd::Variable>> named_tensors(const autograd::Module& model) {
  auto tensors = model.named_parameters();
  for (auto& buffer : model.named_buffers()) tensors.push_back(std::move(buffer));
  return tensors;
}

// Names that no reader looks for: a folder that is being written, and one that makes room for it.
std::string draft_of(const std::string& work_dir, const std::string& name) {
  return join_path(work_dir, "." + name + ".partial");
}
std::string replaced_of(const std::string& work_dir, const std::string& name) {
  return join_path(work_dir, "." + name + ".replaced");
}

/// After a failure: the replaced folder, if any, gets its name back, and the draft goes. A file system that fails here
/// as well is left as a crash would leave it.
void tidy_up(const std::string& draft, const std::string& replaced, const std::string& folder,
             FileSystem& files) noexcept {
  try {
    if (!replaced.empty()) rename_file(replaced, folder, files);
  } catch (const IoError&) {
  }
  try {
    remove_tree(draft, files);
  } catch (const IoError&) {
  }
}

}  // namespace

std::string save_weights(const autograd::Module& model, const std::string& config_yaml, const std::string& work_dir,
                         const std::string& name, FileSystem& files) {
  const std::string folder = join_path(work_dir, name);
  const std::string draft = draft_of(work_dir, name), replaced = replaced_of(work_dir, name);
  // A crash in an earlier save may have left the folder under its hidden name only.
  if (is_directory(replaced, files) && !is_directory(folder, files)) {
    rename_file(replaced, folder, files);
    sync_directory(work_dir, files);
  }
  std::vector<Tensor> kept;
  std::vector<formats::SafetensorsTensor> tensors;
  for (const auto& [tensor_name, variable] : named_tensors(model)) {
    kept.push_back(contiguous(variable.data()));
    const Tensor& x = kept.back();
    const formats::ByteSource bytes = [x](std::uint64_t offset, std::span<std::byte> out) {
      const auto element = static_cast<std::uint64_t>(dtype_size(x.dtype()));
      x.reshape({-1})
          .narrow(0, static_cast<std::int64_t>(offset / element), static_cast<std::int64_t>(out.size() / element))
          .copy_to_host(out.data(), out.size());
    };
    tensors.push_back({tensor_name, x.dtype(), {x.shape().begin(), x.shape().end()}, bytes});
  }
  bool has_replaced = false;
  try {
    remove_tree(draft, files);
    remove_tree(replaced, files);
    make_directories(draft, files);
    formats::write_safetensors(join_path(draft, kWeightsFile), tensors, {{{"format", "pt"}}}, files);
    write_file_atomically(join_path(draft, kConfigFile), config_yaml, files);
    if (is_directory(folder, files)) {
      rename_file(folder, replaced, files);
      has_replaced = true;
      sync_directory(work_dir, files);
    }
    rename_file(draft, folder, files);
    has_replaced = false;
    sync_directory(work_dir, files);
    write_file_atomically(join_path(work_dir, kLastCheckpointFile), name, files);
    remove_tree(replaced, files);
  } catch (...) {
    tidy_up(draft, has_replaced ? replaced : std::string(), folder, files);
    throw;
  }
  return folder;
}

void load_weights(const autograd::Module& model, const std::string& path, FileSystem& files) {
  const std::string file = is_directory(path, files) ? join_path(path, kWeightsFile) : path;
  const auto source = formats::SafetensorsFile::open(file, files);
  std::string problems;
  std::set<std::string> wanted;
  const auto tensors = named_tensors(model);
  for (const auto& [name, variable] : tensors) {
    wanted.insert(name);
    const formats::TensorEntry* entry = source.header().find(name);
    if (entry == nullptr) {
      problems += cat("\n  missing: ", name, " ", variable.data());
    } else if (!(Shape(entry->shape) == variable.shape())) {
      problems += cat("\n  mismatched: ", name, " is ", Shape(entry->shape), " in the file, ", variable.shape(),
                      " in the model");
    }
  }
  for (const auto& entry : source.header().tensors) {
    if (!wanted.contains(entry.name)) problems += cat("\n  unexpected: ", entry.name, " ", Shape(entry.shape));
  }
  if (!problems.empty())
    throw FormatError(cat("load weights from ", file, ": the file does not fit the model:", problems), file, 0);
  for (const auto& [name, variable] : tensors) {
    const formats::TensorEntry& entry = source.at(name);
    const Tensor host = Tensor::empty(variable.shape(), entry.dtype);
    if (host.numel() != 0)
      source.read(entry, 0, {static_cast<std::byte*>(host.view().data), static_cast<std::size_t>(entry.bytes())});
    copy_into(to_device(host, variable.device()), variable.data());
  }
}

std::string find_last_checkpoint(const std::string& work_dir, FileSystem& files) {
  const std::string pointer = join_path(work_dir, kLastCheckpointFile);
  if (!exists(pointer, files)) {
    throw IoError(cat("no saved weights in ", work_dir, ": there is no ", kLastCheckpointFile,
                      "; train first, or name the weights with load_from"),
                  pointer, ENOENT);
  }
  std::string name = read_text_file(pointer, 4096, files);
  while (!name.empty() && (name.back() == '\n' || name.back() == ' ')) name.pop_back();
  if (name.empty() || name.find('/') != std::string::npos || name.starts_with('.')) {
    throw FormatError(cat(pointer, ": expected the name of a folder beside it, got '", name, "'"), pointer, 0);
  }
  const std::string folder = join_path(work_dir, name), replaced = replaced_of(work_dir, name);
  if (is_directory(folder, files)) return folder;
  // A crash while the folder was being replaced: the older one is whole.
  if (is_directory(replaced, files)) return replaced;
  throw IoError(cat("no saved weights: ", pointer, " names ", folder,
                    ", which is not there; train again, or name the weights with load_from"),
                folder, ENOENT);
}

}  // namespace castor::strategy
