// Single files of weights, and the indexes that spread a model over several.
//
// Delicate: an index comes from anywhere and names files; only plain names beside it are opened. A safetensors file is
// opened again for each tensor that is read, so that a model of a thousand files needs one open file.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "core/base/error.h"
#include "core/base/file_error.h"
#include "core/base/json.h"
#include "formats/file_kind.h"
#include "formats/tensor_source.h"
#include "formats/torch_file.h"

namespace castor::formats {
namespace {

// Classes of other programs that stand beside the weights in common checkpoints: mmengine's history of metrics, numbers
// of numpy, arguments of a training script. They are read over and never called.
const std::vector<std::string>& usual_bystanders() {
  static const std::vector<std::string> names = {
      "argparse.Namespace",
      "mmengine.logging.history_buffer.HistoryBuffer",
      "numpy._core.multiarray._reconstruct",
      "numpy._core.multiarray.scalar",
      "numpy.core.multiarray._reconstruct",
      "numpy.core.multiarray.scalar",
      "numpy.dtype",
      "numpy.ndarray",
      "pathlib.PosixPath",
  };
  return names;
}

std::string role_of(const std::string& name) { return is_buffer_name(name) ? "buffer" : "param"; }

void sort_tensors(TensorSource& source) {
  std::sort(source.tensors.begin(), source.tensors.end(), [](const SourceTensor& a, const SourceTensor& b) {
    return std::tie(a.role, a.name) < std::tie(b.role, b.name);
  });
}

// Metadata that names a tensor of the file under a name that is none: how the safetensors package notes tied tensors.
void add_noted_aliases(TensorSource& source, const SafetensorsMetadata& metadata, const SafetensorsHeader& header) {
  for (const auto& [key, value] : metadata) {
    if (header.find(value) != nullptr && header.find(key) == nullptr && key != "format") source.aliases[key] = value;
  }
}

TensorSource safetensors_source(const std::string& path, FileSystem& files) {
  TensorSource source;
  source.path = path;
  source.kind = "safetensors";
  source.files = {path};
  const SafetensorsHeader header = SafetensorsFile::open(path, files).header();
  for (const TensorEntry& entry : header.tensors) {
    source.tensors.push_back(
        {entry.name, role_of(entry.name), entry.dtype, entry.shape, [path, &files, begin = entry.begin] {
           auto file = std::make_shared<const File>(File::open(path, OpenMode::read, files));
           return ByteSource([file, begin](std::uint64_t offset, std::span<std::byte> out) {
             file->read_exact(out, begin + offset);
           });
         }});
  }
  add_noted_aliases(source, header.metadata, header);
  sort_tensors(source);
  return source;
}

TensorSource torch_source(const std::string& path, const SourceOptions& options, FileSystem& files) {
  TensorSource source;
  source.path = path;
  source.kind = "PyTorch";
  source.files = {path};
  TorchFileOptions torch_options;
  torch_options.pickle.inert_globals = usual_bystanders();
  const auto file = std::make_shared<const TorchFile>(TorchFile::open(path, torch_options, files));
  if (options.checksums) file->verify();
  const TorchStateDict state = file->state_dict(options.key);
  for (const TorchStateTensor& tensor : state.tensors) {
    if (tensor.alias_of) {
      source.aliases[tensor.name] = state.tensors[*tensor.alias_of].name;
      continue;
    }
    source.tensors.push_back(
        {tensor.name, role_of(tensor.name), tensor.tensor->dtype, tensor.tensor->shape, [file, view = tensor.tensor] {
           return ByteSource([file, bytes = file->source(*view)](std::uint64_t offset, std::span<std::byte> out) {
             bytes(offset, out);
           });
         }});
  }
  if (!state.key.empty()) source.notes.push_back(cat("took the dict ", quote_name(state.key), " of ", path));
  if (const auto* top = file->root().get_if<PickleDict>(); top != nullptr && !state.key.empty()) {
    std::string others;
    for (const auto& [key, value] : top->items) {
      const auto* text = key->get_if<std::string>();
      if (text != nullptr && *text != state.key) others += (others.empty() ? "" : ", ") + quote_name(*text, 60);
    }
    if (!others.empty()) source.notes.push_back(cat("not taken from ", path, ": ", others));
  }
  if (!state.skipped.empty()) {
    source.notes.push_back(cat("not taken from ", path, ": ", state.skipped.size(), " values that are no tensors, as ",
                               quote_name(state.skipped.front())));
  }
  sort_tensors(source);
  return source;
}

}  // namespace

TensorSource weights_file_source(const std::string& path, const SourceOptions& options, FileSystem& files) {
  switch (const WeightsFileKind kind = weights_file_kind(path, files)) {
    case WeightsFileKind::safetensors:
      return safetensors_source(path, files);
    case WeightsFileKind::zip:
    case WeightsFileKind::torch_legacy:  // its reader says what to do
      return torch_source(path, options, files);
    default:
      throw FormatError(cat("open ", quote_name(path, 4096), ": expected a safetensors or PyTorch file, this is ",
                            weights_file_kind_text(kind)),
                        path, 0);
  }
}

TensorSource index_source(const std::string& path, const SourceOptions& options, FileSystem& files) {
  constexpr std::uint64_t kMaxIndexBytes = std::uint64_t{256} << 20;
  JsonLimits limits;
  limits.max_bytes = kMaxIndexBytes;
  const std::string text = read_text_file(path, kMaxIndexBytes, files);
  const Json document = parse_json(text, path, limits);
  std::map<std::string, std::set<std::string>> names_by_file;
  const JsonCursor map = JsonCursor(document, path).at("weight_map");
  for (const auto& [name, value] : map.members()) {
    const std::string& file = value.string();
    if (!is_checkpoint_file_name(file)) {
      value.fail(cat("expected the plain name of a file beside the index, got ", quote_name(file)));
    }
    names_by_file[file].insert(name);
  }
  if (names_by_file.empty()) map.fail("it names no tensor");

  TensorSource source;
  source.path = path;
  std::set<std::string> taken;
  std::size_t unlisted = 0;
  std::string unlisted_example;
  for (auto& [file_name, names] : names_by_file) {
    TensorSource part = weights_file_source(join_path(directory_of(path), file_name), options, files);
    source.kind = part.kind;
    source.files.push_back(part.path);
    source.notes.insert(source.notes.end(), part.notes.begin(), part.notes.end());
    // Of tied tensors a PyTorch file's index lists one name or both; a listed one keeps the tensor.
    std::set<std::string> listed_by_alias;
    for (const auto& [alias, name] : part.aliases) {
      const bool is_listed = names.erase(alias) > 0;
      if (is_listed) listed_by_alias.insert(name);
      if (is_listed || part.kind == "safetensors") source.aliases[alias] = name;
    }
    for (SourceTensor& tensor : part.tensors) {
      if (names.erase(tensor.name) > 0 || listed_by_alias.contains(tensor.name)) {
        taken.insert(tensor.name);
        source.tensors.push_back(std::move(tensor));
      } else {
        ++unlisted;
        unlisted_example = tensor.name;
      }
    }
    if (!names.empty()) {
      throw FormatError(cat("index ", quote_name(path, 4096), ": ", file_name, " has no tensor ",
                            quote_name(*names.begin()), ", which the index says is in it"),
                        path, 0);
    }
  }
  std::erase_if(source.aliases, [&taken](const auto& alias) { return !taken.contains(alias.second); });
  if (unlisted > 0) {
    source.notes.push_back(
        cat("left out ", unlisted, " tensors that the index does not list, as ", quote_name(unlisted_example)));
  }
  sort_tensors(source);
  return source;
}

}  // namespace castor::formats
