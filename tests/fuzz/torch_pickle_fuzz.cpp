// Fuzz target: any bytes as a PyTorch checkpoint. Input that begins with "PK" is the whole file; any other is the
// pickle of an archive that is right in all else, because a checksum would keep most changed pickles from being read.
// Either FormatError, or values that can be walked and tensors that hold what an element-by-element reading of their
// storage gives. Anything else stops the program, which is the finding.
//
// Build and run: tests/fuzz/run torch_pickle
// Seeds: tests/parity/data/torch_*/*.pth, and the data.pkl of each.
#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "core/base/file_memory.h"
#include "formats/file_kind.h"
#include "formats/torch_file.h"
#include "tests/fuzz/parse_watch.h"
#include "tests/support/zip_writer.h"

namespace {

using castor::formats::PickleDict;
using castor::formats::PickleObject;
using castor::formats::PickleSequence;
using castor::formats::PickleValue;
using castor::formats::TorchFile;
using castor::formats::TorchFileOptions;
using castor::formats::TorchTensor;

constexpr std::size_t kMaxValues = 1 << 14;
constexpr std::size_t kMaxLogicalBytes = 1 << 14;

void require(bool condition) {
  if (!condition) std::abort();
}

std::string storage_bytes(std::size_t count) {
  std::string bytes(count, '\0');
  for (std::size_t i = 0; i < count; ++i) bytes[i] = static_cast<char>(i * 37 + 11);
  return bytes;
}

std::string file_around(const std::string& pickle) {
  return castor::test::write_zip({{"m/data.pkl", pickle},
                                  {"m/byteorder", "little"},
                                  {"m/data/0", storage_bytes(24)},
                                  {"m/data/1", storage_bytes(60)},
                                  {"m/data/2", storage_bytes(8)},
                                  {"m/data/3", ""},
                                  {"m/version", "3\n"}},
                                 true)
      .bytes;
}

// Values met on a walk that takes nothing as shared.
std::size_t walk(const PickleValue& value, int depth) {
  require(depth <= castor::formats::kMaxPickleDepth);
  require(!value.kind_name().empty());
  std::size_t met = 1;
  if (const auto* sequence = value.get_if<PickleSequence>()) {
    for (const PickleValue* item : sequence->items) met += walk(*item, depth + 1);
  } else if (const auto* dict = value.get_if<PickleDict>()) {
    for (const auto& [key, item] : dict->items) met += walk(*key, depth + 1) + walk(*item, depth + 1);
  } else if (const auto* object = value.get_if<PickleObject>()) {
    if (object->args != nullptr) met += walk(*object->args, depth + 1);
    if (object->state != nullptr) met += walk(*object->state, depth + 1);
  }
  return met;
}

void check_tensor(const TorchFile& file, const TorchTensor& tensor) {
  const std::vector<std::byte> bytes = file.read(tensor);
  require(bytes.size() == tensor.bytes() && bytes.size() <= kMaxLogicalBytes);
  std::vector<std::byte> again(bytes.size());
  const castor::formats::ByteSource source = file.source(tensor);
  for (std::size_t at = 0; at < again.size(); at += 7) {
    source(at, std::span(again).subspan(at, std::min<std::size_t>(7, again.size() - at)));
  }
  require(bytes == again);
  if (bytes.empty()) return;

  const castor::formats::ZipArchive& archive = file.archive();
  std::vector<std::byte> storage;
  for (const castor::formats::ZipEntry& pickle : archive.entries()) {
    const std::size_t folder = pickle.name.find('/');
    if (folder == std::string::npos || pickle.name.substr(folder) != "/data.pkl") continue;
    const castor::formats::ZipEntry* entry =
        archive.find(pickle.name.substr(0, folder) + "/data/" + tensor.storage->key);
    require(entry != nullptr);
    storage.resize(entry->bytes);
    archive.read(*entry, 0, storage);
  }
  const std::size_t item = castor::dtype_size(tensor.dtype);
  const auto first = storage.begin() + static_cast<std::ptrdiff_t>(tensor.storage_offset * item);
  if (tensor.is_contiguous()) require(std::equal(bytes.begin(), bytes.end(), first));
  for (std::size_t i = 0; i < bytes.size() / item; ++i) {
    std::size_t rest = i;
    std::size_t place = tensor.storage_offset;
    for (std::size_t axis = tensor.shape.size(); axis-- > 0;) {
      const auto size = static_cast<std::size_t>(tensor.shape[axis]);
      place += rest % size * static_cast<std::size_t>(tensor.strides[axis]);
      rest /= size;
    }
    require(std::equal(bytes.begin() + static_cast<std::ptrdiff_t>(i * item),
                       bytes.begin() + static_cast<std::ptrdiff_t>((i + 1) * item),
                       storage.begin() + static_cast<std::ptrdiff_t>(place * item)));
  }
}

void check(const TorchFile& file) {
  require(walk(file.root(), 0) <= kMaxValues);
  const auto state = castor::test::watch_parse(file.archive().file_bytes(), [&] { return file.state_dict(); });
  for (const castor::formats::TorchStateTensor& tensor : state.tensors) {
    require(state.find(tensor.name) == &tensor);
    check_tensor(file, *tensor.tensor);
    if (tensor.alias_of) require(file.read(*state.tensors[*tensor.alias_of].tensor) == file.read(*tensor.tensor));
  }
  file.verify();
}

}  // namespace

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer prescribes the name
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string input(reinterpret_cast<const char*>(data), size);
  const std::string contents = input.starts_with("PK") ? input : file_around(input);
  const auto kind =
      castor::formats::weights_file_kind(std::as_bytes(std::span(data, std::min<std::size_t>(size, 16))), size);
  require(!castor::formats::weights_file_kind_text(kind).empty());
  castor::MemoryFileSystem files;
  castor::File::open("/f", castor::OpenMode::create, files).write_exact(castor::as_byte_span(contents), 0);
  TorchFileOptions options;
  options.pickle.max_values = kMaxValues;
  options.pickle.inert_globals = {"numpy.dtype", "numpy.core.multiarray.scalar"};
  options.max_logical_bytes = kMaxLogicalBytes;
  try {
    check(castor::test::watch_parse(contents.size(), [&] { return TorchFile::open("/f", options, files); }));
  } catch (const castor::FormatError& error) {
    require(error.file == "/f" && error.offset <= contents.size());
  }
  return 0;
}
