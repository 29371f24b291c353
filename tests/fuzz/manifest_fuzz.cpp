// Fuzz target: any bytes as a checkpoint's manifest, as they are and with the digest that they deserve, without which
// nothing would get past the first check. Either FormatError, or a manifest that keeps every promise of parse_manifest
// and whose text is written and parsed again to the same. Anything else stops the program, which is the finding.
//
// Build and run: tests/fuzz/run manifest
#include <algorithm>
#include <cstdlib>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "core/base/digest.h"
#include "core/base/error.h"
#include "core/base/file.h"
#include "formats/array_shape.h"
#include "formats/manifest.h"
#include "formats/manifest_check.h"
#include "tests/fuzz/parse_watch.h"

namespace {

using castor::formats::CheckpointFile;
using castor::formats::LogicalTensor;
using castor::formats::Manifest;
using castor::formats::TensorSlice;

void require(bool condition) {
  if (!condition) std::abort();
}

std::optional<Manifest> parse(const std::string& text) {
  try {
    return castor::test::watch_parse(text.size(), [&] { return castor::formats::parse_manifest(text, "m"); });
  } catch (const castor::FormatError& error) {
    require(error.file == "m" && error.offset <= text.size());
    return std::nullopt;
  }
}

// What readers rely on, found another way than check_manifest does.
void check_promises(const Manifest& manifest) {
  std::vector<std::tuple<std::uint32_t, std::uint64_t, std::uint64_t>> pieces;
  for (const LogicalTensor& tensor : manifest.tensors) {
    require(manifest.find(tensor.role, tensor.name) == &tensor);
    require(castor::formats::bytes_of_shape(tensor.shape, tensor.dtype) == tensor.bytes());
    std::int64_t elements = 0;
    for (const TensorSlice& slice : tensor.slices) {
      require(slice.offset == elements && slice.count >= 1);
      elements += slice.count;
      const std::uint64_t bytes = static_cast<std::uint64_t>(slice.count) * castor::dtype_size(tensor.dtype);
      require((slice.digests.size() - 1) * castor::formats::kDigestBlockBytes < bytes);
      require(slice.digests.size() * castor::formats::kDigestBlockBytes >= bytes);
      pieces.emplace_back(slice.file, slice.begin, slice.begin + bytes);
    }
    require(elements == tensor.numel());
  }
  for (std::uint32_t number = 0; number < manifest.files.size(); ++number) {
    const CheckpointFile& file = manifest.files[number];
    require(!file.name.empty() && file.name.find('/') == std::string::npos && file.name.front() != '.');
    require(std::count_if(manifest.files.begin(), manifest.files.end(),
                          [&file](const CheckpointFile& other) { return other.name == file.name; }) == 1);
    pieces.emplace_back(number, 0, file.head_bytes);
    pieces.emplace_back(number, file.bytes, file.bytes);
  }
  std::sort(pieces.begin(), pieces.end());
  for (std::size_t i = 0; i + 1 < pieces.size(); ++i) {
    const auto& [file, begin, end] = pieces[i];
    const auto& [next_file, next_begin, next_end] = pieces[i + 1];
    require(file < manifest.files.size());
    require(file != next_file ? end == manifest.files[file].bytes && next_begin == 0 : end == next_begin);
  }
  for (const auto& [alias, name] : manifest.aliases) {
    const LogicalTensor* param = manifest.find("param", alias);
    const LogicalTensor* buffer = manifest.find("buffer", alias);
    require((param != nullptr && param->name == name) || (buffer != nullptr && buffer->name == name));
  }
}

void check(const std::string& text) {
  const std::optional<Manifest> manifest = parse(text);
  if (!manifest) return;
  require(manifest->manifest_bytes == text.size());
  check_promises(*manifest);
  const std::string written = castor::formats::manifest_text(*manifest, "m");
  const std::optional<Manifest> again = parse(written);
  require(again && castor::formats::manifest_text(*again, "m") == written);
  require(again->files.size() == manifest->files.size() && again->tensors.size() == manifest->tensors.size());
  require(again->aliases == manifest->aliases && again->save_number == manifest->save_number);
  for (std::size_t i = 0; i < manifest->tensors.size(); ++i) {
    const LogicalTensor &a = manifest->tensors[i], &b = again->tensors[i];
    require(a.name == b.name && a.role == b.role && a.dtype == b.dtype && a.shape == b.shape);
    require(a.slices.size() == b.slices.size());
  }
}

}  // namespace

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer prescribes the name
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  check(text);
  check(text + castor::formats::manifest_tail(castor::xxh3(castor::as_byte_span(text))));
  return 0;
}
