// What a path is: which of the layouts that people keep weights in.
#include "formats/tensor_source.h"

#include <algorithm>
#include <array>
#include <optional>
#include <tuple>

#include "core/base/error.h"
#include "core/base/file_error.h"
#include "formats/checkpoint_list.h"

namespace castor::formats {
namespace {

constexpr const char* kPointerName = "last_checkpoint";
constexpr const char* kModelFolder = "model";

[[noreturn]] void refuse(const std::string& path, const std::string& what) {
  throw FormatError(cat("open ", quote_name(path, 4096), ": ", what), path, 0);
}

// Names of files in a folder that end in `ending`.
std::vector<std::string> files_ending(const std::vector<DirectoryEntry>& entries, std::string_view ending) {
  std::vector<std::string> names;
  for (const DirectoryEntry& entry : entries) {
    const bool may_be_file = entry.kind != FileKind::directory;  // Hugging Face's cache holds symbolic links
    if (may_be_file && entry.name.ends_with(ending) && !entry.name.starts_with('.')) names.push_back(entry.name);
  }
  return names;
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + quote_name(name);
  return text;
}

// The one index of a folder, or its file of weights under the usual name; nothing if it has none.
std::optional<std::string> usual_name(const std::string& folder, const std::vector<DirectoryEntry>& entries) {
  for (const char* ending : {".safetensors.index.json", ".bin.index.json", ".index.json"}) {
    const std::vector<std::string> names = files_ending(entries, ending);
    if (names.size() > 1) refuse(folder, cat("it holds several indexes: ", joined(names), "; name one"));
    if (names.size() == 1) return names.front();
  }
  for (const char* usual : {"model.safetensors", "pytorch_model.bin"}) {
    const auto is_it = [&](const DirectoryEntry& entry) { return entry.name == usual; };
    if (std::any_of(entries.begin(), entries.end(), is_it)) return usual;
  }
  return std::nullopt;
}

// The only file that looks like weights; nothing if there is none.
std::optional<std::string> only_name(const std::string& folder, const std::vector<DirectoryEntry>& entries) {
  for (const auto& endings : std::vector<std::vector<const char*>>{{".safetensors"}, {".bin", ".pth", ".pt"}}) {
    std::vector<std::string> names;
    for (const char* ending : endings) {
      for (std::string& name : files_ending(entries, ending)) {
        if (name != "meta.pth") names.push_back(std::move(name));  // mmengine keeps it beside the weights
      }
    }
    if (names.size() > 1) refuse(folder, cat("it holds several files of weights: ", joined(names), "; name one"));
    if (names.size() == 1) return names.front();
  }
  return std::nullopt;
}

TensorSource open_file(const std::string& path, const SourceOptions& options, FileSystem& files) {
  return path.ends_with(".json") ? index_source(path, options, files) : weights_file_source(path, options, files);
}

// A folder of ColossalAI or mmengine: the weights are in "model", which is a folder or a file.
TensorSource open_model_folder(const std::string& folder, const std::vector<DirectoryEntry>& entries,
                               const SourceOptions& options, FileSystem& files) {
  const std::string model = join_path(folder, kModelFolder);
  TensorSource source;
  if (is_directory(model, files)) {
    const std::vector<DirectoryEntry> inside = list_directory(model, files);
    std::optional<std::string> name = usual_name(model, inside);
    if (!name) name = only_name(model, inside);
    if (!name) refuse(model, "expected an index or one file of weights in it");
    source = open_file(join_path(model, *name), options, files);
  } else {
    source = weights_file_source(model, options, files);
  }
  std::vector<std::string> others;
  for (const DirectoryEntry& entry : entries) {
    if (entry.name != kModelFolder) others.push_back(entry.name);
  }
  source.path = folder;
  if (!others.empty()) source.notes.push_back(cat("not taken from ", folder, ": ", joined(others)));
  return source;
}

// The name that last_checkpoint holds; mmengine writes a whole path, of which only the end still holds after a move.
std::optional<std::string> pointed_name(const std::string& folder, FileSystem& files) {
  const std::string pointer = join_path(folder, kPointerName);
  if (!exists(pointer, files)) return std::nullopt;
  std::string text = read_text_file(pointer, 65536, files);
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r' || text.back() == ' ')) text.pop_back();
  const std::string name = file_name_of(text);
  if (!is_checkpoint_file_name(name) || !exists(join_path(folder, name), files)) {
    refuse(folder,
           cat(kPointerName, " names ", quote_name(text), ", and there is no ", quote_name(name), " beside it"));
  }
  return name;
}

TensorSource open_folder(const std::string& folder, const SourceOptions& options, FileSystem& files, bool may_be_run);

// The newest checkpoint of a run's folder; nothing if it is none.
std::optional<TensorSource> open_run(const std::string& folder, const SourceOptions& options, FileSystem& files) {
  const CheckpointList list = list_checkpoints(folder, files);
  const std::optional<std::string> name =
      list.checkpoints.empty() ? pointed_name(folder, files) : list.checkpoints.front().name;
  if (!name) return std::nullopt;
  const std::string path = join_path(folder, *name);
  TensorSource source =
      is_directory(path, files) ? open_folder(path, options, files, false) : weights_file_source(path, options, files);
  source.notes.insert(source.notes.begin(), cat("took ", path, ", the newest of ", folder));
  return source;
}

TensorSource open_folder(const std::string& folder, const SourceOptions& options, FileSystem& files, bool may_be_run) {
  if (exists(join_path(folder, kManifestName), files)) {
    return checkpoint_source(std::make_shared<const Checkpoint>(Checkpoint::open(folder, files)));
  }
  const std::vector<DirectoryEntry> entries = list_directory(folder, files);
  std::optional<std::string> name = usual_name(folder, entries);
  if (!name && exists(join_path(folder, kModelFolder), files)) {
    return open_model_folder(folder, entries, options, files);
  }
  if (!name && may_be_run) {
    if (std::optional<TensorSource> newest = open_run(folder, options, files)) return std::move(*newest);
  }
  if (!name) name = only_name(folder, entries);
  if (name) {
    TensorSource source = open_file(join_path(folder, *name), options, files);
    source.notes.insert(source.notes.begin(), cat("took ", join_path(folder, *name)));
    return source;
  }
  if (may_be_run) {
    const CheckpointList list = list_checkpoints(folder, files);
    if (!list.torn.empty()) {
      refuse(folder, cat("it holds no complete checkpoint: ", list.torn.front().name, ": ", list.torn.front().reason));
    }
  }
  refuse(folder, cat("found no weights: no ", kManifestName,
                     ", no index (*.index.json), no .safetensors, .bin, .pth or "
                     ".pt file, no folder ",
                     quote_name(kModelFolder), may_be_run ? " and no last_checkpoint" : ""));
}

}  // namespace

std::uint64_t SourceTensor::numel() const {
  std::uint64_t product = 1;
  for (const std::int64_t size : shape) product *= static_cast<std::uint64_t>(size);
  return product;
}

const SourceTensor* TensorSource::find(std::string_view role, std::string_view name) const {
  const auto key = std::tuple(role, name);
  const auto found =
      std::lower_bound(tensors.begin(), tensors.end(), key, [](const SourceTensor& tensor, const auto& wanted) {
        return std::tuple(std::string_view(tensor.role), std::string_view(tensor.name)) < wanted;
      });
  return found == tensors.end() || found->role != role || found->name != name ? nullptr : &*found;
}

std::uint64_t TensorSource::bytes() const {
  std::uint64_t total = 0;
  for (const SourceTensor& tensor : tensors) total += tensor.bytes();
  return total;
}

bool is_buffer_name(std::string_view name) {
  const std::string_view last = name.substr(name.rfind('.') + 1);
  return last == "running_mean" || last == "running_var" || last == "num_batches_tracked";
}

bool is_weight_role(std::string_view role) { return role == "param" || role == "buffer"; }

TensorSource open_tensor_source(const std::string& path, const SourceOptions& options, FileSystem& files) {
  if (is_directory(path, files)) return open_folder(path, options, files, true);
  return open_file(path, options, files);
}

ByteSource deferred_source(const SourceTensor& tensor) {
  struct State {
    std::function<ByteSource()> open;
    std::uint64_t bytes;
    ByteSource stream;
  };
  auto state = std::make_shared<State>(State{tensor.open, tensor.bytes(), {}});
  return [state](std::uint64_t offset, std::span<std::byte> out) {
    if (!state->stream) state->stream = state->open();
    state->stream(offset, out);
    if (offset + out.size() == state->bytes) state->stream = {};
  };
}

}  // namespace castor::formats
