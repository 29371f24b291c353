// Opening a PyTorch archive and reading its tensors. The state dict is flattened in torch_state_dict.cpp.
//
// Delicate: the pickle and the archive both tell how large a storage is, and must agree before any tensor is believed.
#include "formats/torch_file.h"

#include <algorithm>
#include <charconv>

#include "core/base/error.h"
#include "core/base/file_error.h"
#include "formats/array_shape.h"
#include "formats/file_kind.h"
#include "formats/strided_source.h"

namespace castor::formats {
namespace {

constexpr std::uint64_t kExpansion = 8;
constexpr std::uint64_t kSmallExpansion = std::uint64_t{1} << 20;
constexpr int kNewestVersion = 10;
constexpr std::uint64_t kShortEntryBytes = 16;

[[noreturn]] void fail_at(const std::string& file, std::uint64_t offset, const std::string& what) {
  throw FormatError(cat("torch ", quote_name(file, 4096), ": at byte ", offset, ": ", what), file, offset);
}

void check_kind(const std::string& path, FileSystem& files) {
  const WeightsFileKind kind = weights_file_kind(path, files);
  if (kind == WeightsFileKind::zip) return;
  const std::string_view advice =
      kind == WeightsFileKind::torch_legacy
          ? ": load it with torch 1.6 or later where you trust it and save it again, torch.save(torch.load(path), path)"
          : "";
  fail_at(
      path, 0,
      cat("expected a zip archive as torch.save writes it since 1.6, this is ", weights_file_kind_text(kind), advice));
}

// The folder that holds all: "name/".
std::string find_folder(const ZipArchive& archive) {
  constexpr std::string_view kPickle = "/data.pkl";
  std::string folder;
  for (const ZipEntry& entry : archive.entries()) {
    if (!entry.name.ends_with(kPickle) || entry.name.find('/') != entry.name.size() - kPickle.size()) continue;
    if (!folder.empty()) fail_at(archive.path(), entry.offset, "the archive has two folders with a data.pkl");
    folder = entry.name.substr(0, entry.name.size() - kPickle.size() + 1);
  }
  if (folder.empty()) {
    fail_at(archive.path(), 0, "the zip archive has no NAME/data.pkl: it is no PyTorch checkpoint");
  }
  if (archive.find(folder + "constants.pkl") != nullptr) {
    fail_at(archive.path(), 0,
            "this is a TorchScript program, which would have to be run: save its weights instead, "
            "torch.save(module.state_dict(), path)");
  }
  return folder;
}

// The contents of a short entry without a line's end; empty if there is none.
std::string short_entry(const ZipArchive& archive, const std::string& name) {
  const ZipEntry* entry = archive.find(name);
  if (entry == nullptr) return {};
  if (entry->bytes == 0 || entry->bytes > kShortEntryBytes) {
    fail_at(archive.path(), entry->offset,
            cat("expected 1 to ", kShortEntryBytes, " bytes in ", quote_name(name), ", got ", entry->bytes));
  }
  const std::vector<std::byte> bytes = archive.read(*entry);
  std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  while (text.ends_with('\n') || text.ends_with('\r')) text.pop_back();
  return text;
}

void check_conventions(const ZipArchive& archive, const std::string& folder) {
  const std::string order = short_entry(archive, folder + "byteorder");
  if (!order.empty() && order != "little") {
    fail_at(archive.path(), archive.find(folder + "byteorder")->offset,
            cat("expected numbers of the byte order \"little\", got ", quote_name(order),
                ": save the file again on a little-endian machine"));
  }
  const std::string version = short_entry(archive, folder + "version");
  int number = 0;
  const auto [end, error] = std::from_chars(version.data(), version.data() + version.size(), number);
  const bool whole = error == std::errc() && end == version.data() + version.size();
  if (!version.empty() && (!whole || number < 1 || number > kNewestVersion)) {
    fail_at(archive.path(), archive.find(folder + "version")->offset,
            cat("expected a version from 1 to ", kNewestVersion, ", got ", quote_name(version)));
  }
}

}  // namespace

TorchFile TorchFile::open(const std::string& path, const TorchFileOptions& options, FileSystem& files) {
  check_kind(path, files);
  auto archive = std::make_unique<const ZipArchive>(ZipArchive::open(path, files));
  std::string folder = find_folder(*archive);
  check_conventions(*archive, folder);
  const ZipEntry& pickle = *archive->find(folder + "data.pkl");
  if (pickle.bytes > options.pickle.max_bytes) {
    fail_at(path, pickle.offset,
            cat("data.pkl has ", pickle.bytes, " bytes, at most ", options.pickle.max_bytes, " are read"));
  }
  PickleTree tree = parse_torch_pickle(archive->read(pickle), path, pickle.offset, options.pickle);
  std::uint64_t limit = options.max_logical_bytes;
  if (limit == 0) limit = kExpansion * archive->file_bytes() + kSmallExpansion;
  TorchFile file(std::move(archive), std::move(folder), std::move(tree), limit, pickle.offset);
  file.check_storages();
  return file;
}

const ZipEntry& TorchFile::entry_of(const TorchStorage& storage) const {
  const ZipEntry* entry = archive_->find(cat(folder_, "data/", storage.key));
  if (entry == nullptr) {
    fail_at(path(), storage.file_at,
            cat("a tensor needs the storage ", quote_name(storage.key), ", and the archive has no ",
                quote_name(cat(folder_, "data/", storage.key))));
  }
  return *entry;
}

void TorchFile::check_storages() const {
  for (const PickleValue& value : tree_.values) {
    const auto* storage = value.get_if<TorchStorage>();
    if (storage == nullptr) continue;
    const ZipEntry& entry = entry_of(*storage);
    if (entry.bytes / storage->type->item_bytes != storage->numel) {
      fail_at(path(), storage->file_at,
              cat("the storage ", quote_name(storage->key), " is said to have ", storage->numel, " elements of ",
                  storage->type->item_bytes, " bytes, the archive has ", entry.bytes, " bytes of it"));
    }
  }
}

void TorchFile::check_size(const TorchTensor& tensor) const {
  if (tensor.bytes() <= max_logical_bytes_) return;
  fail_at(path(), tensor.storage->file_at,
          cat("a tensor ", tensor.dtype, shape_text(tensor.shape), " shows ", tensor.bytes(), " bytes of a storage of ",
              tensor.storage->bytes(), "; at most ", max_logical_bytes_,
              " are read: save tensor.contiguous() or raise max_logical_bytes"));
}

ByteSource TorchFile::source(const TorchTensor& tensor) const {
  check_size(tensor);
  const ZipArchive* archive = archive_.get();
  const ZipEntry* entry = &entry_of(*tensor.storage);
  const std::uint64_t item_bytes = dtype_size(tensor.dtype);
  StridedBytes view{tensor.shape, tensor.strides, 0, item_bytes};
  // An empty tensor may point anywhere, and nothing is read.
  if (tensor.bytes() > 0) view.begin = tensor.storage_offset * item_bytes;
  return strided_source(
      view, [archive, entry](std::uint64_t offset, std::span<std::byte> out) { archive->read(*entry, offset, out); });
}

std::vector<std::byte> TorchFile::read(const TorchTensor& tensor) const {
  const ByteSource bytes_of = source(tensor);
  std::vector<std::byte> bytes(tensor.bytes());
  bytes_of(0, bytes);
  return bytes;
}

void TorchFile::verify() const {
  for (const ZipEntry& entry : archive_->entries()) archive_->verify(entry);
}

}  // namespace castor::formats
