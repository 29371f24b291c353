// What must hold within a manifest, and its text.
//
// Delicate: the text ends in a tail of fixed length with the digest of all bytes before it, so that a reader can tell a
// damaged manifest before it parses a word of it.
#include "formats/manifest.h"

#include <algorithm>
#include <set>
#include <tuple>

#include "core/base/digest.h"
#include "core/base/error.h"
#include "core/base/file_error.h"
#include "core/base/json.h"
#include "formats/array_shape.h"
#include "formats/manifest_check.h"
#include "formats/safetensors.h"

namespace castor::formats {
namespace {

auto key_of(const LogicalTensor& tensor) {
  return std::pair<std::string_view, std::string_view>(tensor.role, tensor.name);
}

std::string slice_text(const TensorSlice& slice) {
  std::string digests;
  digests.reserve(slice.digests.size() * 16);
  for (const std::uint64_t digest : slice.digests) digests += hex_of_digest(digest);
  std::string text = "[";
  text += std::to_string(slice.file);
  for (const std::uint64_t number :
       {slice.begin, static_cast<std::uint64_t>(slice.offset), static_cast<std::uint64_t>(slice.count)}) {
    text += ',';
    text += std::to_string(number);
  }
  return text + ",\"" + digests + "\"]";
}

std::string tensor_text(const LogicalTensor& tensor) {
  std::string text = "{\"name\":" + quote_json(tensor.name) + ",\"role\":" + quote_json(tensor.role) + ",\"dtype\":\"";
  text += safetensors_dtype_name(tensor.dtype);
  text += "\",\"shape\":" + shape_text(tensor.shape) + ",\"slices\":[";
  bool is_first = true;
  for (const TensorSlice& slice : tensor.slices) {
    if (!std::exchange(is_first, false)) text += ',';
    text += slice_text(slice);
  }
  return text + "]}";
}

std::string file_text(const CheckpointFile& file) {
  return cat("{\"name\":", quote_json(file.name), ",\"bytes\":", file.bytes, ",\"head_bytes\":", file.head_bytes,
             ",\"head_xxh3\":\"", hex_of_digest(file.head_digest), "\"}");
}

// Lists things one a line, so that a manifest can be read and compared with line tools.
template <class Items, class Text>
std::string lines(const Items& items, const Text& text_of) {
  std::string text;
  for (const auto& item : items) {
    text += text.empty() ? "\n" : ",\n";
    text += text_of(item);
  }
  return text + (text.empty() ? "" : "\n");
}

}  // namespace

std::int64_t LogicalTensor::numel() const {
  std::int64_t product = 1;
  for (const std::int64_t size : shape) product *= size;
  return product;
}

const LogicalTensor* Manifest::find(std::string_view role, std::string_view name) const {
  const std::pair<std::string_view, std::string_view> key(role, name);
  const auto found =
      std::lower_bound(tensors.begin(), tensors.end(), key,
                       [](const LogicalTensor& tensor, const auto& wanted) { return key_of(tensor) < wanted; });
  if (found != tensors.end() && key_of(*found) == key) return &*found;
  if (role != kParamRole && role != kBufferRole) return nullptr;
  const auto alias = aliases.find(std::string(name));
  return alias == aliases.end() || alias->second == name ? nullptr : find(role, alias->second);
}

void Manifest::sort() {
  std::sort(tensors.begin(), tensors.end(),
            [](const LogicalTensor& a, const LogicalTensor& b) { return key_of(a) < key_of(b); });
  for (LogicalTensor& tensor : tensors) {
    std::sort(tensor.slices.begin(), tensor.slices.end(),
              [](const TensorSlice& a, const TensorSlice& b) { return a.offset < b.offset; });
  }
}

std::string manifest_text(const Manifest& manifest, const std::string& file) {
  check_manifest(manifest, file);
  return unchecked_manifest_text(manifest);
}

std::string unchecked_manifest_text(const Manifest& manifest) {
  std::string text = cat("{\"format\":\"", kManifestFormat, "\",\"version\":", manifest.version,
                         ",\"reads\":", kManifestReads, ",\"save\":", manifest.save_number, ",\n\"files\":[");
  text += lines(manifest.files, file_text);
  text += "],\n\"tensors\":[";
  text += lines(manifest.tensors, tensor_text);
  text += "],\n\"aliases\":{";
  text += lines(manifest.aliases,
                [](const auto& alias) { return quote_json(alias.first) + ":" + quote_json(alias.second); });
  text += "},\n";
  text += manifest_tail(xxh3(std::as_bytes(std::span(text))));
  return text;
}

bool is_checkpoint_file_name(std::string_view name) {
  const auto is_fine = [](char c) {
    return static_cast<unsigned char>(c) >= 0x20 && c != 0x7f && c != '/' && c != '\\';
  };
  return !name.empty() && name.size() <= 255 && name.front() != '.' && name != kManifestName &&
         std::all_of(name.begin(), name.end(), is_fine) && is_utf8(name);
}

void check_manifest(const Manifest& manifest, const std::string& file) {
  const auto refuse = [&file](const auto&... parts) {
    throw FormatError(cat("manifest ", quote_name(file, 4096), ": ", parts...), file, 0);
  };
  std::set<std::string_view> file_names;
  for (const CheckpointFile& entry : manifest.files) {
    const std::string name = quote_name(entry.name);
    if (!is_checkpoint_file_name(entry.name)) refuse("expected the name of a file beside the manifest, got ", name);
    if (!file_names.insert(entry.name).second) refuse("two files are called ", name);
    if (entry.bytes > kMaxFileBytes) refuse("file ", name, ": expected at most 2^62 bytes, got ", entry.bytes);
    if (entry.head_bytes > entry.bytes) {
      refuse("file ", name, ": has ", entry.bytes, " bytes, fewer than the ", entry.head_bytes, " of its head");
    }
  }

  struct Piece {
    std::uint32_t file;
    std::uint64_t begin, end;
    const LogicalTensor* tensor;
  };
  SegmentedList<Piece> pieces;
  const LogicalTensor* before = nullptr;
  for (const LogicalTensor& tensor : manifest.tensors) {
    const std::string name = cat("tensor ", quote_name(tensor.name), " (", quote_name(tensor.role, 40), ")");
    if (tensor.name.empty() || tensor.role.empty() || !is_utf8(tensor.name) || !is_utf8(tensor.role)) {
      refuse(name, ": expected a name and a role in UTF-8");
    }
    if (before != nullptr && !(key_of(*before) < key_of(tensor))) {
      refuse(name, key_of(*before) == key_of(tensor) ? ": is there twice" : ": is out of order (by role, then name)");
    }
    before = &tensor;
    if (tensor.shape.size() > kMaxSafetensorsAxes) refuse(name, ": has more than ", kMaxSafetensorsAxes, " axes");
    if (std::any_of(tensor.shape.begin(), tensor.shape.end(), [](std::int64_t size) { return size < 0; }) ||
        bytes_of_shape(tensor.shape, tensor.dtype).value_or(kMaxFileBytes + 1) > kMaxFileBytes) {
      refuse(name, ": expected a shape of at most 2^62 bytes, got ", tensor.dtype, shape_text(tensor.shape));
    }
    const std::uint64_t element = dtype_size(tensor.dtype);
    std::int64_t reached = 0;
    for (const TensorSlice& slice : tensor.slices) {
      if (slice.file >= manifest.files.size()) refuse(name, ": there is no file number ", slice.file);
      const CheckpointFile& holder = manifest.files[slice.file];
      if (slice.offset != reached) {
        refuse(name, ": expected a slice from element ", reached, " on, got one from ", slice.offset);
      }
      if (slice.count < 1 || slice.count > tensor.numel() - reached) {
        refuse(name, ": a slice from element ", reached, " on has ", slice.count, " of ", tensor.numel() - reached,
               " elements that are left");
      }
      reached += slice.count;
      const std::uint64_t bytes = static_cast<std::uint64_t>(slice.count) * element;
      if (slice.begin < holder.head_bytes || slice.begin > holder.bytes || bytes > holder.bytes - slice.begin) {
        refuse(name, ": bytes [", slice.begin, ", ", slice.begin, " + ", bytes, ") do not lie within file ",
               quote_name(holder.name), ", which has ", holder.bytes, " with a head of ", holder.head_bytes);
      }
      if (slice.digests.size() != (bytes + kDigestBlockBytes - 1) / kDigestBlockBytes) {
        refuse(name, ": ", slice.digests.size(), " digests for a slice of ", bytes, " bytes");
      }
      pieces.push_back({slice.file, slice.begin, slice.begin + bytes, &tensor});
    }
    if (reached != tensor.numel()) refuse(name, ": the slices hold ", reached, " of ", tensor.numel(), " elements");
  }

  std::sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) {
    return std::tie(a.file, a.begin, a.end) < std::tie(b.file, b.begin, b.end);
  });
  auto piece = pieces.begin();
  for (std::uint32_t number = 0; number < manifest.files.size(); ++number) {
    const CheckpointFile& holder = manifest.files[number];
    std::uint64_t reached = holder.head_bytes;
    for (; piece != pieces.end() && piece->file == number; ++piece) {
      if (piece->begin != reached) {
        refuse("file ", quote_name(holder.name), ": tensor ", quote_name(piece->tensor->name),
               piece->begin < reached ? " overlaps another one" : " leaves a hole before it", ": expected byte ",
               reached, ", it begins at ", piece->begin);
      }
      reached = piece->end;
    }
    if (reached != holder.bytes) {
      refuse("file ", quote_name(holder.name), ": its last ", holder.bytes - reached, " bytes belong to no tensor");
    }
  }

  for (const auto& [alias, name] : manifest.aliases) {
    const auto is_tensor = [&manifest](const std::string& wanted) {
      return manifest.find(kParamRole, wanted) != nullptr || manifest.find(kBufferRole, wanted) != nullptr;
    };
    if (manifest.aliases.contains(name) || !is_tensor(name)) {
      refuse("alias ", quote_name(alias), ": expected the name of a param or buffer, got ", quote_name(name));
    }
    if (alias.empty() || !is_utf8(alias)) refuse("alias ", quote_name(alias), ": expected a name in UTF-8");
    for (const std::string_view role : {kParamRole, kBufferRole}) {
      const LogicalTensor* tensor = manifest.find(role, alias);
      if (tensor != nullptr && tensor->name == alias) refuse("alias ", quote_name(alias), ": a tensor has that name");
    }
  }
}

}  // namespace castor::formats
